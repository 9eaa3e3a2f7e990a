//! Which users and groups of the host a user namespace has.

use std::fs;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use crate::IsolationError;

/// A range of ids: `:NAMESPACE:HOST:COUNT:`, with any character for the colon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRange {
    /// The first id in the namespace, which is the guest's.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

/// Why a range of ids is none.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not of the form :NAMESPACE:HOST:COUNT:, as in :0:100000:65536:")]
pub struct IdRangeError(String);

impl FromStr for IdRange {
    type Err = IdRangeError;

    fn from_str(text: &str) -> Result<IdRange, IdRangeError> {
        let error = || IdRangeError(text.to_owned());
        let separator = text.chars().next().ok_or_else(error)?;
        let fields = text[separator.len_utf8()..].strip_suffix(separator).ok_or_else(error)?;
        let numbers: Result<Vec<u32>, _> = fields.split(separator).map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[inside, outside, count])
                if count > 0
                    && inside.checked_add(count).is_some()
                    && outside.checked_add(count).is_some() =>
            {
                Ok(IdRange { inside, outside, count })
            }
            _ => Err(error()),
        }
    }
}

/// Writes the maps of a user namespace from outside, once it is there. Made before the process enters it.
pub(crate) struct MapWriter {
    option: &'static str,
    helper: Child,
}

impl MapWriter {
    /// `program` is newuidmap or newgidmap, which know what a user may map (subuid(5), subgid(5)). Root writes by himself.
    pub(crate) fn new(
        option: &'static str,
        program: &'static str,
        ranges: &[IdRange],
    ) -> Result<MapWriter, IsolationError> {
        let (process, root) = (std::process::id(), rustix::process::geteuid().is_root());
        let file = program.strip_prefix("new").map(|map| map.replace("map", "_map")).unwrap_or_default();
        let lines: Vec<_> =
            ranges.iter().map(|it| format!("{} {} {}", it.inside, it.outside, it.count)).collect();
        let write = match root {
            true => format!("printf '{}\\n' > /proc/{process}/{file}", lines.join("\\n")),
            false => format!("exec {program} {process} {}", lines.join(" ")),
        };
        let helper = Command::new("/bin/sh")
            .args(["-c", &format!("read -r go && {write}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| IsolationError::MapRefused { option, why: error.to_string() })?;
        Ok(MapWriter { option, helper })
    }

    /// Writes the map; the namespace is there.
    pub(crate) fn write(mut self) -> Result<(), IsolationError> {
        let refused = |why: String| IsolationError::MapRefused { option: self.option, why };
        let told = self.helper.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(b"go\n"));
        told.map_err(|error| refused(error.to_string()))?;
        let output = self.helper.wait_with_output().map_err(|error| refused(error.to_string()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }
}

/// The user and group who started the process are all that its namespace has, under their own numbers.
pub(crate) fn map_own(uid: u32, gid: u32) -> io::Result<()> {
    // Without it a group could be left that is denied something (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

    use super::*;

    #[test]
    fn a_range_has_three_numbers_between_four_separators() {
        let range = IdRange { inside: 0, outside: 100_000, count: 65536 };
        assert_eq!(":0:100000:65536:".parse::<IdRange>().unwrap(), range);
        assert_eq!("/0/100000/65536/".parse::<IdRange>().unwrap(), range);
        for wrong in ["", ":", "0:1:2", ":0:1:2", ":0:1:", ":0:1:0:", ":a:1:2:", ":0:4294967295:2:", "é0é1é"]
        {
            let error = wrong.parse::<IdRange>().unwrap_err().to_string();
            assert!(error.contains(":0:100000:65536:"), "{error}");
        }
    }
}
