//! To be filled.
/// x
pub struct Session;
/// x
pub struct Limits;
