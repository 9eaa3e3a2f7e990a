//! A server that goes while its client has dirty pages. Ours in `client_over_socket`, which stops it in this process.

mod with_virtiofsd {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use ashore_client::Client;
    use ashore_testkit::share::Virtiofsd;

    /// Far more than any of it takes.
    const FINITE: Duration = Duration::from_secs(30);

    #[test]
    fn a_server_that_is_killed_is_an_error_in_finite_time() {
        let share = tempfile::tempdir().unwrap();
        let mut server = Virtiofsd::start(share.path(), &["--writeback"]);
        let client = Client::connect(server.socket()).unwrap();
        client.create("file").unwrap().write_all_at(b"dirty", 0).unwrap();
        server.kill();
        let (done, over) = mpsc::channel();
        thread::spawn(move || {
            assert!(client.write("new", b"x").is_err());
            assert!(client.sync().is_err());
            client.unmount().unwrap_err();
            done.send(())
        });
        over.recv_timeout(FINITE).expect("it hangs, or has panicked");
    }
}
