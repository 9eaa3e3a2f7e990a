//! What is under test, behind one trait.

use ashore_barrier::bucket::{BucketBarrier, BucketTicket};
use ashore_barrier::{Barrier, Cut, Options, Ticket};

pub(crate) trait Subject: Send + Sync + 'static {
    type Ticket: Send + 'static;

    /// To be called first in each execution.
    fn start() {
        #[cfg(any(loom, shuttle))]
        ashore_barrier::start_model(0);
    }

    fn make() -> Self;
    fn enter(&self) -> Self::Ticket;
    fn cut(&self) -> Cut;
    fn is_earlier(&self, ticket: &Self::Ticket, cut: &Cut) -> bool;
    fn abort(&self);
}

/// The algorithm of 2021.
pub(crate) struct Bucket(BucketBarrier);

/// The shipped one with the fewest buckets: each is reused at once, and overlapping cuts are put off.
pub(crate) struct TwoBuckets(Barrier);

/// The shipped one as it is by default.
#[cfg_attr(loom, allow(dead_code))]
pub(crate) struct EightBuckets(Barrier);

/// The shipped one with room for several cuts at once, reused soon.
pub(crate) struct FourBuckets(Barrier);

impl Subject for Bucket {
    type Ticket = BucketTicket;

    fn make() -> Self {
        Self(BucketBarrier::new())
    }
    fn enter(&self) -> BucketTicket {
        self.0.enter()
    }
    fn cut(&self) -> Cut {
        self.0.cut()
    }
    fn is_earlier(&self, ticket: &BucketTicket, cut: &Cut) -> bool {
        self.0.is_earlier(ticket, cut)
    }
    fn abort(&self) {
        self.0.abort();
    }
}

macro_rules! shipped {
    ($name:ident, $options:expr $(, first slot $first:literal)?) => {
        impl Subject for $name {
            type Ticket = Ticket;

            $(fn start() {
                ashore_barrier::start_model($first);
            })?

            fn make() -> Self {
                let options: Options = $options;
                Self(Barrier::with(&options))
            }
            fn enter(&self) -> Ticket {
                self.0.enter()
            }
            fn cut(&self) -> Cut {
                self.0.cut()
            }
            fn is_earlier(&self, ticket: &Ticket, cut: &Cut) -> bool {
                self.0.is_earlier(ticket, cut)
            }
            fn abort(&self) {
                self.0.abort();
            }
        }
    };
}

fn with_buckets(live_buckets: usize) -> Options {
    let mut options = Options::default();
    options.live_buckets = live_buckets;
    options
}

shipped!(TwoBuckets, with_buckets(2));
shipped!(FourBuckets, with_buckets(4));
shipped!(EightBuckets, with_buckets(8));

/// Two buckets, and fences that order each writer with the cut and no two writers with each other.
#[cfg(any(loom, shuttle))]
pub(crate) struct PairedFences(Barrier);

#[cfg(any(loom, shuttle))]
shipped!(PairedFences, {
    let mut options = with_buckets(2);
    options.paired_fences = true;
    options
});

/// Two buckets, and a fence on both sides although the kernel has a better one.
#[cfg(not(any(loom, shuttle)))]
pub(crate) struct FullFences(Barrier);

#[cfg(not(any(loom, shuttle)))]
shipped!(FullFences, {
    let mut options = with_buckets(2);
    options.full_fences = true;
    options
});

/// Two buckets; the first thread to come has a slot, and for the others there is none left.
#[cfg(any(loom, shuttle))]
pub(crate) struct OneSlot(Barrier);

#[cfg(loom)]
shipped!(OneSlot, with_buckets(2), first slot 2);
#[cfg(shuttle)]
shipped!(OneSlot, with_buckets(2), first slot 15);
