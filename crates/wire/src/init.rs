//! INIT: which version is spoken and which features are used.
//!
//! A pure function over a table of what is implemented. A feature is agreed only if the client offered it *and*
//! it stands in the table; nothing is ever echoed because it was offered.

use crate::abi::{InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION};
use crate::flags::InitFlags;
use crate::request::Dialect;

/// What a server and its file system can do: the table INIT is answered from.
#[derive(Clone, Debug)]
pub struct Implemented {
    /// Features that will be used if the client offers them.
    pub flags: InitFlags,
    /// Bytes a client may read ahead; the smaller of this and the client's own wish is agreed.
    pub max_readahead: u32,
    /// Bytes in one WRITE or READ, at most; limited to `max_pages` pages of 4 KiB.
    pub max_write: u32,
    /// Pages of 4 KiB in one request; agreed only with MAX_PAGES, else the kernel's default of 32 stands.
    pub max_pages: u16,
    /// Background requests (write-back, read-ahead) a client may have under way.
    pub max_background: u16,
    /// Background requests above which a client holds back read-ahead and idle write-back.
    pub congestion_threshold: u16,
    /// Granularity of time stamps, in nanoseconds.
    pub time_gran: u32,
}

/// What was agreed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// The smaller of both sides' minor versions.
    pub minor: u32,
    /// Features in use.
    pub flags: InitFlags,
    /// Bytes in one WRITE or READ, at most.
    pub max_write: u32,
}

impl Agreement {
    /// How the requests that follow are laid out.
    pub fn dialect(&self) -> Dialect {
        Dialect { setxattr_ext: self.flags.contains(InitFlags::SETXATTR_EXT) }
    }
}

/// What INIT led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Both sides can talk: the reply, and what it says.
    Agreed(InitOut, Agreement),
    /// The client's major version is newer. The reply names ours, and a client that can will ask again with it.
    AskAgain(InitOut),
    /// The client is older than 7.27; there is no common language.
    TooOld {
        /// The client's major version.
        major: u32,
        /// The client's minor version.
        minor: u32,
    },
}

const PAGE_SIZE: u32 = 4096;
/// Since when security contexts come as an extension, with a length; before that one had to guess where they begin.
const EXTENSIONS_MINOR_VERSION: u32 = 38;
const PAGES_WITHOUT_MAX_PAGES: u32 = 32;

/// Answers an INIT from the table of what is implemented.
pub fn negotiate(offer: &InitIn, implemented: &Implemented) -> Outcome {
    if offer.major > KERNEL_VERSION {
        let reply = InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..Default::default() };
        return Outcome::AskAgain(reply);
    }
    if offer.major < KERNEL_VERSION || offer.minor < OLDEST_MINOR_VERSION {
        return Outcome::TooOld { major: offer.major, minor: offer.minor };
    }
    let mut flags = agreed_flags(offered_flags(offer), implemented.flags);
    if offer.minor < EXTENSIONS_MINOR_VERSION {
        flags -= InitFlags::SECURITY_CTX;
    }
    let max_pages = if flags.contains(InitFlags::MAX_PAGES) {
        implemented.max_pages
    } else {
        PAGES_WITHOUT_MAX_PAGES as u16
    };
    let max_write = implemented.max_write.min(u32::from(max_pages) * PAGE_SIZE);
    let minor = offer.minor.min(KERNEL_MINOR_VERSION);
    let reply = InitOut {
        major: KERNEL_VERSION,
        minor,
        max_readahead: implemented.max_readahead.min(offer.max_readahead),
        flags: flags.bits() as u32,
        flags2: (flags.bits() >> 32) as u32,
        max_background: implemented.max_background,
        congestion_threshold: implemented.congestion_threshold,
        max_write,
        time_gran: implemented.time_gran,
        max_pages: if flags.contains(InitFlags::MAX_PAGES) { max_pages } else { 0 },
        // The file systems of the host that hold the data stand on no other.
        max_stack_depth: flags.contains(InitFlags::PASSTHROUGH).into(),
        ..Default::default()
    };
    Outcome::Agreed(reply, Agreement { minor, flags, max_write })
}

/// The features a client offers; `flags2` counts only if the client says that it has filled it in.
pub fn offered_flags(offer: &InitIn) -> InitFlags {
    let low = InitFlags::from_bits_retain(u64::from(offer.flags));
    if low.contains(InitFlags::INIT_EXT) {
        low | InitFlags::from_bits_retain(u64::from(offer.flags2) << 32)
    } else {
        low
    }
}

/// Both sides' features, without those that mean nothing or harm without another.
fn agreed_flags(offered: InitFlags, implemented: InitFlags) -> InitFlags {
    let needs_init_ext = InitFlags::from_bits_retain(!0 << 32);
    let mut flags = offered & implemented;
    if offered.contains(InitFlags::INIT_EXT) && !(flags & needs_init_ext).is_empty() {
        flags |= InitFlags::INIT_EXT;
    } else {
        flags -= needs_init_ext | InitFlags::INIT_EXT;
    }
    // (feature, what it needs to be agreed beside it)
    let dependencies = [
        (InitFlags::READDIRPLUS_AUTO, InitFlags::DO_READDIRPLUS),
        (InitFlags::POSIX_ACL, InitFlags::DONT_MASK),
    ];
    for (feature, needed) in dependencies {
        if !flags.contains(needed) {
            flags -= feature;
        }
    }
    // The kernel refuses a connection that has both: data goes either through its cache or past it.
    if flags.contains(InitFlags::PASSTHROUGH) {
        flags -= InitFlags::WRITEBACK_CACHE;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(flags: InitFlags) -> Implemented {
        Implemented {
            flags,
            max_readahead: 1 << 20,
            max_write: 1 << 20,
            max_pages: 256,
            max_background: 64,
            congestion_threshold: 48,
            time_gran: 1,
        }
    }

    fn offer(minor: u32, flags: InitFlags) -> InitIn {
        InitIn {
            major: 7,
            minor,
            max_readahead: 128 << 10,
            flags: flags.bits() as u32,
            flags2: (flags.bits() >> 32) as u32,
            ..Default::default()
        }
    }

    fn agreement(offer: &InitIn, table: &Implemented) -> (InitOut, Agreement) {
        match negotiate(offer, table) {
            Outcome::Agreed(reply, agreement) => (reply, agreement),
            other => panic!("not agreed: {other:?}"),
        }
    }

    #[test]
    fn a_newer_major_is_asked_to_come_down_and_an_older_client_is_refused() {
        let newer = InitIn { major: 8, minor: 3, ..Default::default() };
        assert!(matches!(negotiate(&newer, &table(InitFlags::all())),
            Outcome::AskAgain(reply) if reply.major == 7 && reply.flags == 0));
        for (major, minor) in [(6, 99), (7, 26), (7, 0), (0, 0)] {
            let old = InitIn { major, minor, ..Default::default() };
            assert_eq!(negotiate(&old, &table(InitFlags::all())), Outcome::TooOld { major, minor });
        }
    }

    #[test]
    fn the_smaller_minor_and_the_smaller_readahead_win() {
        let (reply, agreed) = agreement(&offer(31, InitFlags::all()), &table(InitFlags::all()));
        assert_eq!((reply.minor, agreed.minor, reply.max_readahead), (31, 31, 128 << 10));
        let (reply, _) = agreement(&offer(60, InitFlags::all()), &table(InitFlags::all()));
        assert_eq!(reply.minor, KERNEL_MINOR_VERSION);
    }

    #[test]
    fn without_max_pages_a_write_is_at_most_32_pages() {
        let (reply, agreed) = agreement(&offer(45, InitFlags::empty()), &table(InitFlags::all()));
        assert_eq!((reply.max_pages, reply.max_write, agreed.max_write), (0, 128 << 10, 128 << 10));
    }

    #[test]
    fn high_flags_are_agreed_only_through_init_ext() {
        let high = InitFlags::ALLOW_IDMAP | InitFlags::CREATE_SUPP_GROUP;
        let (reply, _) = agreement(&offer(45, high), &table(InitFlags::all()));
        assert_eq!((reply.flags, reply.flags2), (0, 0), "the client did not say that flags2 is there");
        let (reply, _) = agreement(&offer(45, high | InitFlags::INIT_EXT), &table(high));
        assert_eq!(reply.flags2, (high.bits() >> 32) as u32);
        assert_eq!(reply.flags, InitFlags::INIT_EXT.bits() as u32);
    }

    #[test]
    fn passthrough_and_writeback_are_never_agreed_together() {
        let (_, agreed) = agreement(&offer(45, InitFlags::all()), &table(InitFlags::all()));
        assert!(agreed.flags.contains(InitFlags::PASSTHROUGH));
        assert!(!agreed.flags.contains(InitFlags::WRITEBACK_CACHE));
    }

    proptest! {
        #[test]
        fn nothing_is_agreed_that_was_not_both_offered_and_implemented(offered: u64, can: u64) {
            let offered = InitFlags::from_bits_retain(offered);
            let can = InitFlags::from_bits_retain(can);
            let (reply, agreed) = agreement(&offer(45, offered), &table(can));
            prop_assert!((offered & (can | InitFlags::INIT_EXT)).contains(agreed.flags));
            let sent = u64::from(reply.flags) | u64::from(reply.flags2) << 32;
            prop_assert_eq!(sent, agreed.flags.bits());
        }
    }
}
