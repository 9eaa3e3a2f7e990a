//! SQLite as Linux guests use it on shares with locks that reach beyond one guest.
//!
//! The rollback journal needs locks and nothing else, so writers in several guests share a database: with `--cache never`, since
//! a guest that remembers pages or lengths reads an old database under a new lock. Write-ahead logging needs memory that all
//! writers share, which no two guests have: its writers are in one guest, and that guest's kernel has to know of each write itself
//! (`--writeback`). Where it asks the server, it may drop a page that is on its way there, and read the one before it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

mod in_a_real_guest {
    use std::path::Path;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use ashore_testkit::guest::{Guest, Running, Server, Share};

    /// How many transactions all writers make together, if not 10,000.
    const TRANSACTIONS: &str = "ASHORE_SQLITE_TRANSACTIONS";
    const PATIENCE: Duration = Duration::from_secs(3600);

    fn transactions() -> u32 {
        let wanted = std::env::var(TRANSACTIONS).ok();
        wanted.map_or(10_000, |text| {
            text.parse().unwrap_or_else(|_| panic!("{TRANSACTIONS}={text} is no number"))
        })
    }

    /// A guest with a server of its own, and the share that all servers share.
    struct Machine {
        guest: Guest,
        _server: Server,
    }

    impl Machine {
        fn boot(shared: &Path, caching: &str) -> Machine {
            let server = Server::builder(shared).queues(2).arg("--posix-lock").arg("--flock");
            let server = server.arg(caching).start().unwrap();
            let share = Share::new(server.socket()).queues(2);
            let guest = Guest::builder().share(share).program("sqlite3").boot().unwrap();
            Machine { guest, _server: server }
        }

        /// A writer that makes so many transactions, each of two statements that belong together, and says the number of each
        /// that SQLite took for committed.
        fn writer(&self, name: &str, count: u32) -> Running {
            let script = format!(
                "i=0; echo '.timeout 600000'; echo '.bail on'
                while [ $i -lt {count} ]; do
                    i=$((i + 1))
                    echo \"begin immediate; insert into entries values ('{name}', $i); \
                        update total set entries = entries + 1; commit; select 'done', $i;\"
                done"
            );
            // The file keeps what the guest has been told if the guest does not live to tell it.
            let command =
                format!("({script}) | sqlite3 /mnt/share/database > /tmp/{name} && tail -n 1 /tmp/{name}");
            self.guest.spawn(&command).unwrap()
        }

        fn sql(&self, statements: &str) -> String {
            let command = format!("sqlite3 -cmd '.timeout 600000' /mnt/share/database \"{statements}\"");
            self.guest.run(&command).unwrap().success().unwrap()
        }
    }

    fn tables(machine: &Machine, journal: &str) {
        let mode = machine.sql(&format!("pragma journal_mode={journal}"));
        assert_eq!(mode.trim(), journal);
        machine.sql(
            "create table entries (writer text, number integer, primary key (writer, number)); \
             create table total (entries integer); insert into total values (0)",
        );
    }

    /// What SQLite of the host says of the database, once no guest has it open.
    fn on_host(shared: &Path, statements: &str) -> String {
        let mut sqlite = Command::new("sqlite3");
        let output = sqlite.arg(shared.join("database")).arg(statements).output();
        let output = output.expect("sqlite3 is needed: run `cargo xtask setup` as root");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn finish(writers: Vec<Running>, count: u32) {
        for writer in writers {
            let said = writer.wait_for(PATIENCE).unwrap().success().unwrap();
            assert_eq!(said.trim(), format!("done|{count}"));
        }
    }

    fn is_whole(shared: &Path, entries: u32) {
        assert_eq!(on_host(shared, "pragma integrity_check"), "ok");
        assert_eq!(on_host(shared, "select count(*) from entries"), entries.to_string());
        assert_eq!(on_host(shared, "select entries from total"), entries.to_string());
    }

    #[test]
    fn four_writers_in_two_guests_share_a_database_with_a_rollback_journal() {
        let shared = tempfile::tempdir().unwrap();
        let machines =
            [Machine::boot(shared.path(), "--cache=never"), Machine::boot(shared.path(), "--cache=never")];
        tables(&machines[0], "delete");
        let each = transactions() / 4;
        let begun = Instant::now();
        let writers = ["a", "b", "c", "d"].iter().enumerate();
        let writers = writers.map(|(index, name)| machines[index % 2].writer(name, each)).collect();
        finish(writers, each);
        println!("{} transactions, rollback journal, two guests: {:?}", each * 4, begun.elapsed());
        is_whole(shared.path(), each * 4);
    }

    #[test]
    fn four_writers_in_one_guest_share_a_database_with_a_write_ahead_log() {
        let shared = tempfile::tempdir().unwrap();
        let machine = Machine::boot(shared.path(), "--writeback");
        tables(&machine, "wal");
        let each = transactions() / 4;
        let begun = Instant::now();
        let writers = ["a", "b", "c", "d"].map(|name| machine.writer(name, each));
        finish(writers.into(), each);
        println!("{} transactions, write-ahead log, one guest: {:?}", each * 4, begun.elapsed());
        drop(machine);
        is_whole(shared.path(), each * 4);
    }

    /// Aim: what a guest that is killed leaves, locks and half a transaction, is in nobody's way. Method: two guests write, one
    /// is killed, the other goes on to its end; then the same again, some times.
    #[test]
    fn a_guest_that_is_killed_leaves_a_database_that_the_other_goes_on_with() {
        let shared = tempfile::tempdir().unwrap();
        let survivor = Machine::boot(shared.path(), "--cache=never");
        tables(&survivor, "delete");
        let each = transactions() / 8;
        for round in 0..2 {
            let victim = Machine::boot(shared.path(), "--cache=never");
            let names = ["a", "b", "c", "d"].map(|name| format!("{name}{round}"));
            let doomed = [victim.writer(&names[0], 1_000_000), victim.writer(&names[1], 1_000_000)];
            let going_on = [survivor.writer(&names[2], each), survivor.writer(&names[3], each)];
            let count =
                |name: &str| survivor.sql(&format!("select count(*) from entries where writer='{name}'"));
            while count(&names[0]).trim() == "0" || count(&names[1]).trim() == "0" {
                std::thread::sleep(Duration::from_millis(100));
            }
            drop(victim);
            drop(doomed);
            finish(going_on.into(), each);
            assert_eq!(survivor.sql("pragma integrity_check").trim(), "ok");
        }
        drop(survivor);
        let entries = on_host(shared.path(), "select count(*) from entries").parse().unwrap();
        assert!(entries > each * 4, "the guests that were killed had written too");
        is_whole(shared.path(), entries);
        let gaps = "select count(*) from (select writer from entries group by writer having count(*) <> max(number))";
        assert_eq!(on_host(shared.path(), gaps), "0", "no transaction is missing before a later one");
    }
}
