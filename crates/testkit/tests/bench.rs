//! The measurements, over our own server: every row and plot comes out, and nothing of them is left in the share.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use ashore_bench::BenchArguments;
use ashore_passthrough::Passthrough;
use ashore_server::{Limits, Session, Worker};
use ashore_vhost_user::device::{Device, DeviceOptions, Listener};

/// A server of our own in this process, which ends by itself after so many connections.
fn serve(share: &Path, socket: &Path, request_queues: u16, connections: usize) -> JoinHandle<()> {
    let options = ashore_passthrough::Options { writeback: true, ..ashore_passthrough::Options::new(share) };
    let session = Session::new(Passthrough::new(options).unwrap(), Limits::default());
    let options = DeviceOptions { request_queues, ..DeviceOptions::default() };
    let work = move |_, queue| Worker::new(Arc::clone(&session)).run(queue);
    let device = Device::new(options, work).unwrap();
    let listener = Listener::bind(socket).unwrap();
    std::thread::spawn(move || (0..connections).for_each(|_| drop(device.serve(&listener))))
}

fn arguments(socket: PathBuf) -> BenchArguments {
    BenchArguments {
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
    }
}

#[test]
fn every_row_is_measured_and_the_share_is_left_as_it_was() {
    let (share, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = elsewhere.path().join("socket");
    // One connection for single requests, another for cached files.
    let serving = serve(share.path(), &socket, 1, 2);
    let report = ashore_bench::run(&arguments(socket)).unwrap();
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
fn the_plots_are_drawn_and_the_share_is_left_as_it_was() {
    let (share, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = elsewhere.path().join("server");
    let serving = serve(share.path(), &socket, 1, 1);
    let directory = elsewhere.path().join("plots");
    let files = ashore_bench::plot(&arguments(socket), &directory).unwrap();
    assert_eq!(files, ["depth.svg", "queues.svg", "latency.svg"].map(|name| directory.join(name)));
    for (file, curves) in files.iter().zip([1, 0, 3]) {
        let drawn = std::fs::read_to_string(file).unwrap();
        assert!(drawn.starts_with("<svg") && drawn.contains(">server</text>"), "{drawn}");
        assert_eq!(drawn.matches("<polyline").count(), curves, "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
    serving.join().unwrap();
    assert_eq!(std::fs::read_dir(share.path()).unwrap().count(), 0);
}

#[test]
fn with_two_queues_one_is_measured_too() {
    // No more queues than processors.
    let queues = std::thread::available_parallelism().unwrap().get().min(2);
    let (share, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = elsewhere.path().join("server");
    let serving = serve(share.path(), &socket, 2, queues);
    ashore_bench::plot(&arguments(socket), elsewhere.path()).unwrap();
    let drawn = std::fs::read_to_string(elsewhere.path().join("queues.svg")).unwrap();
    assert_eq!(drawn.matches("<rect x").count(), queues, "{drawn}");
    serving.join().unwrap();
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
