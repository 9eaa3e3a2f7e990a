//! What the embedding program decides about a device.

use std::fmt;
use std::time::Duration;

/// Most request queues a device offers.
pub(crate) const REQUEST_QUEUES_MAX: u16 = 64;
/// Bytes of a tag, as the device's configuration space has room for.
const TAG_BYTES: usize = 36;

/// How a device presents itself.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// How many request queues there are beside the hiprio queue, 1 to 64. Linux uses as many as it has CPUs.
    pub request_queues: u16,
    /// The name the guest mounts by, if the VMM asks us for it; QEMU has its own option for that.
    pub tag: Option<Tag>,
    /// How long a queue's thread looks for new requests before it sleeps. 0: sleep at once. What it saves is a
    /// wake-up, and what it costs is a CPU that is busy waiting.
    pub poll_us: u32,
    /// How long the thread of the hiprio queue lets requests gather once it has served one: FORGETs come one behind the other,
    /// nobody waits for them, and each would be a notification in both directions. So an INTERRUPT behind a FORGET may take this
    /// long; a sync does not wait for it. Zero: each at once.
    pub hiprio_nap: Duration,
    /// Have VMMs keep what is in flight (INFLIGHT_SHMFD). For servers that can go on where one was that was killed.
    pub keep_inflight: bool,
}

impl Default for DeviceOptions {
    fn default() -> DeviceOptions {
        DeviceOptions {
            request_queues: 1,
            tag: None,
            poll_us: 0,
            hiprio_nap: Duration::from_millis(1),
            keep_inflight: false,
        }
    }
}

impl DeviceOptions {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        match self.request_queues {
            1..=REQUEST_QUEUES_MAX => Ok(()),
            count => Err(OptionsError::RequestQueues(count)),
        }
    }

    /// All queues, hiprio included.
    pub(crate) fn queues(&self) -> u16 {
        self.request_queues + 1
    }

    /// The configuration space: tag, then the number of request queues.
    pub(crate) fn config_space(&self) -> [u8; TAG_BYTES + 4] {
        let mut space = [0; TAG_BYTES + 4];
        if let Some(Tag(tag)) = &self.tag {
            space[..tag.len()].copy_from_slice(tag.as_bytes());
        }
        space[TAG_BYTES..].copy_from_slice(&u32::from(self.request_queues).to_le_bytes());
        space
    }
}

/// An option that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionsError {
    /// The number of request queues is out of range.
    #[error("{0} request queues cannot be offered: choose between 1 and {REQUEST_QUEUES_MAX}")]
    RequestQueues(u16),
    /// Linux refuses the tag.
    #[error("{0:?} cannot be a tag: it must have 1 to {TAG_BYTES} bytes and no newline or NUL")]
    Tag(String),
}

/// The name a guest mounts a share by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tag(String);

impl Tag {
    /// Checks a tag by the rules of Linux.
    pub fn new(tag: &str) -> Result<Tag, OptionsError> {
        let fine = (1..=TAG_BYTES).contains(&tag.len()) && !tag.contains(['\n', '\0']);
        fine.then(|| Tag(tag.to_owned())).ok_or_else(|| OptionsError::Tag(tag.to_owned()))
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which queue: 0 is hiprio, the others carry requests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueIndex(pub u16);

impl QueueIndex {
    /// Whether this is the queue that Linux uses for FORGET.
    pub fn is_hiprio(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for QueueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("queue 0 (hiprio)"),
            index => write!(f, "queue {index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_linux_accepts() {
        for bad in ["", "two\nlines", "nul\0", "thirty-seven bytes are one too many.."] {
            assert!(Tag::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Tag::new("thirty-six bytes are as many as fit.").unwrap().as_str().len(), 36);
    }

    #[test]
    fn the_configuration_space_is_the_padded_tag_and_the_number_of_queues() {
        let tag = Some(Tag::new("share").unwrap());
        let options = DeviceOptions { request_queues: 3, tag, ..Default::default() };
        let space = options.config_space();
        assert_eq!((&space[..6], space[36..].len()), (&b"share\0"[..], 4));
        assert_eq!(space[36..], [3, 0, 0, 0]);
    }

    #[test]
    fn the_number_of_request_queues_is_1_to_64() {
        let options = |request_queues| DeviceOptions { request_queues, ..Default::default() };
        assert!(options(0).check().is_err() && options(65).check().is_err());
        assert!(options(1).check().is_ok() && options(64).check().is_ok());
    }
}
