//! Holds a mounted file system, of whatever kind, against the list of what a program may expect.
//!
//!     conformance DIR
//!
//! `DIR` is an empty directory on it. A line for each case, and exit code 1 if one fails. Needs root: owners are changed and
//! devices made.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use ashore_testkit::conformance::{Assembly, Directory};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: conformance DIR");
        return ExitCode::from(2);
    };
    // What went wrong stands in the report; the place in the code is for who looks into it.
    let report = Assembly::new(Directory::new(directory), None).play();
    println!("{report}");
    ExitCode::from(u8::from(!report.conforms()))
}
