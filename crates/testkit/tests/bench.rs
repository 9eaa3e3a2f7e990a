//! The measurements, over our own server: every row comes out, and nothing of them is left in the share.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use ashore_bench::BenchArguments;
use ashore_passthrough::Passthrough;
use ashore_server::{Limits, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Listener};

#[test]
fn every_row_is_measured_and_the_share_is_left_as_it_was() {
    let share = tempfile::tempdir().unwrap();
    let session = Session::new(
        Passthrough::new(ashore_passthrough::Options {
            writeback: true,
            ..ashore_passthrough::Options::new(share.path())
        })
        .unwrap(),
        Limits::default(),
    );
    let device =
        Device::new(DeviceOptions::default(), move |_, queue| Worker::new(Arc::clone(&session)).run(queue))
            .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let socket = elsewhere.path().join("socket");
    let listener = Listener::bind(&socket).unwrap();
    // One connection for single requests, another for cached files.
    let serving = std::thread::spawn(move || (0..2).for_each(|_| drop(device.serve(&listener))));
    let arguments = BenchArguments {
        socket: Some(socket),
        compare: Vec::new(),
        path: Vec::new(),
        dir: None,
        seconds: 0.01,
        rounds: 1,
        only: Vec::new(),
        queues: 1,
        poll_us: 50,
        // Server and measurements are one process here.
        no_pin: true,
        no_native: true,
    };
    let report = ashore_bench::run(&arguments).unwrap();
    assert_eq!(report.rows.len(), 25);
    for row in &report.rows {
        let sample = row.servers[0].as_ref().unwrap_or_else(|why| panic!("{}: {why}", row.name));
        assert!(
            sample.operations > 0 && (sample.cpu_us() > 0.0 || row.name.starts_with("cached")),
            "{}: {sample:?}",
            row.name
        );
    }
    serving.join().unwrap();
    assert_eq!(std::fs::read_dir(share.path()).unwrap().count(), 0);
}

#[test]
fn two_directories_are_compared_and_left_as_they_were() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let arguments = BenchArguments {
        socket: None,
        compare: Vec::new(),
        path: directories.iter().map(|directory| directory.path().to_owned()).collect(),
        dir: None,
        seconds: 0.01,
        rounds: 2,
        only: vec!["READ 4 KiB".to_owned(), "CREATE".to_owned()],
        queues: 1,
        poll_us: 0,
        no_pin: true,
        no_native: false,
    };
    let report = ashore_bench::run(&arguments).unwrap();
    let names: Vec<_> = report.rows.iter().map(|row| row.name).collect();
    assert_eq!(names, ["READ 4 KiB", "READ 4 KiB depth 16", "CREATE+WRITE+RELEASE+UNLINK"]);
    for row in &report.rows {
        assert!(row.ratios.unwrap()[0] > 0.0 && row.native_rate.unwrap() > 0.0, "{row:?}");
    }
    for directory in directories {
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
