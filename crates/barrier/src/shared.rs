//! Memory that tickets may point to for as long as they like.
//!
//! A ticket must be cheap, must be able to outlive a borrow (it travels with a request from thread to thread), and must
//! not count references: a reference count is the very cache line that this crate is here to avoid. So what it points
//! to is never freed. It is reused: a barrier that is dropped goes to a list, and the next one to be made takes its
//! memory over as soon as no ticket of the old one is outstanding. The memory in use is bounded by the largest number
//! of barriers that existed (or had tickets outstanding) at one time.
//!
//! A thread may still be in the last lines of a settle when the memory is reused. That is harmless, as the memory
//! keeps its type (the kernel's name for this is `SLAB_TYPESAFE_BY_RCU`): it makes such a thread look, under the lock,
//! whether a bucket became empty, which is true or not whoever asks.

#[cfg(not(any(loom, shuttle)))]
mod imp {
    use std::ops::Deref;
    use std::sync::{Mutex, PoisonError};

    pub(crate) struct Shared<T: 'static>(&'static T);

    impl<T> Deref for Shared<T> {
        type Target = T;

        #[inline(always)]
        fn deref(&self) -> &T {
            self.0
        }
    }

    impl<T> Clone for Shared<T> {
        #[inline(always)]
        fn clone(&self) -> Self {
            Self(self.0)
        }
    }

    /// Where the memory of dropped barriers waits.
    pub(crate) struct Pool<T: 'static>(Mutex<Vec<&'static T>>);

    impl<T> Pool<T> {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Vec::new()))
        }

        /// Takes one that `fits`, or makes one.
        pub(crate) fn take(&self, fits: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Shared<T> {
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match free.iter().position(|each| fits(each)) {
                Some(place) => Shared(free.swap_remove(place)),
                None => Shared(Box::leak(Box::new(make()))),
            }
        }

        pub(crate) fn give(&self, shared: &Shared<T>) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(shared.0);
        }
    }
}

/// In a model, memory must end with the execution, and counting references costs nothing that is measured.
#[cfg(any(loom, shuttle))]
mod imp {
    use std::marker::PhantomData;
    use std::ops::Deref;
    use std::sync::Arc;

    pub(crate) struct Shared<T: 'static>(Arc<T>);

    impl<T> Deref for Shared<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    impl<T> Clone for Shared<T> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    pub(crate) struct Pool<T: 'static>(PhantomData<fn() -> T>);

    impl<T> Pool<T> {
        pub(crate) const fn new() -> Self {
            Self(PhantomData)
        }

        pub(crate) fn take(&self, _fits: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Shared<T> {
            Shared(Arc::new(make()))
        }

        pub(crate) fn give(&self, _shared: &Shared<T>) {}
    }
}

pub(crate) use imp::{Pool, Shared};
