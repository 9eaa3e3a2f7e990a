//! The parameter by which the kernel offers FUSE over io_uring, on for as long as a step takes.

use std::fs;

use anyhow::{Context, Result};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
/// Tells the tests of mounts to take requests so, or to fail.
pub(crate) const VARIABLE: &str = "ASHORE_TEST_IO_URING";

/// Dropped, the parameter is what it was.
pub(crate) struct Offered {
    before: String,
}

impl Offered {
    pub(crate) fn by_the_kernel() -> Result<Offered> {
        let before = fs::read_to_string(PARAMETER).with_context(|| {
            format!(
                "{PARAMETER} is not there: this step takes Linux 6.14 or newer with CONFIG_FUSE_IO_URING, \
                 and the module (modprobe fuse)"
            )
        })?;
        let offered = Offered { before };
        offered.set("Y").with_context(|| format!("{PARAMETER} cannot be set: run this step as root"))?;
        Ok(offered)
    }

    fn set(&self, value: &str) -> std::io::Result<()> {
        if self.before.trim() == value { Ok(()) } else { fs::write(PARAMETER, value) }
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        if self.before.trim() != "Y"
            && let Err(error) = fs::write(PARAMETER, &self.before)
        {
            eprintln!("{PARAMETER} could not be put back to {}: {error}", self.before.trim());
        }
    }
}
