//! Does a SYNCFS overtake the WRITEs that were sent before it? 64 WRITEs on up to four queues, a SYNCFS on another, nobody
//! waits for anything, and at the answer to the SYNCFS the blocks are looked for in the image of the host's file system.
//!
//! ```text
//! cargo run -p ashore-testkit --example overtaking -- [ROUNDS [PATH-OF-VIRTIOFSD]]
//! ```
//!
//! As root, for a file system of its own. virtiofsd is run with a pool of 64 threads, its way to serve requests side by
//! side; the path of it is `virtiofsd` unless told otherwise.

#![allow(clippy::unwrap_used, reason = "a tool for developers: what fails is shown as it is")]

use std::time::Duration;

use ashore_passthrough::{HostFileSystems, Options, Passthrough};
use ashore_server::{Limits, Session};
use ashore_testkit::delayed::Delayed;
use ashore_testkit::guest::{LoopImage, Server};
use ashore_testkit::in_process::InProcess;
use ashore_testkit::overtaking::{self, Outcome, WRITES};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds = arguments.next().map_or(1000, |text| text.parse().expect("ROUNDS is a number"));
    let virtiofsd = arguments.next().unwrap_or_else(|| "virtiofsd".into());

    let disk = LoopImage::ext4(64).unwrap();
    let passthrough =
        Passthrough::with_hosts(Options::new(disk.path()), HostFileSystems::of_this_process()).unwrap();
    let slow = Delayed::new(passthrough, Duration::from_millis(1), 10);
    let server = InProcess::serve(Session::new(slow, Limits::default()), 5).unwrap();
    report(
        "ashore, half of its writes up to 1 ms slower",
        overtaking::run(&server.socket(), &disk.image(), rounds).unwrap(),
    );
    drop(server);
    drop(disk);

    for more in ["", " --thread-pool-size 64"] {
        let disk = LoopImage::ext4(64).unwrap();
        let command = format!(
            "{virtiofsd} --sandbox none --seccomp none --shared-dir {{dir}} --socket-path {{socket}}{more}"
        );
        let server = Server::builder(disk.path()).command(&command).start().unwrap();
        report(
            &format!("virtiofsd{more}"),
            overtaking::run(&server.socket(), &disk.image(), rounds).unwrap(),
        );
        drop(server);
    }
}

fn report(who: &str, outcome: Outcome) {
    let Outcome { rounds, short, missing, answered_later, queues, round_time } = outcome;
    println!(
        "{who}: {short} of {rounds} syncs short, {missing} of {} blocks missing, {answered_later} writes answered after \
         the sync, {queues} request queue(s), {:.1} ms a round",
        rounds * WRITES,
        round_time.as_secs_f64() * 1e3
    );
}
