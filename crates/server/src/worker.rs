//! To be filled.
/// x
pub struct Worker;
