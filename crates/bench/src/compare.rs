//! Two servers in turns, on the same files.

use anyhow::{Context, Result};

use crate::process::Server;
use crate::report::{Cell, Report};
use crate::{BenchArguments, measure_server};

pub(crate) fn compare(arguments: &BenchArguments, a: &str, b: &str) -> Result<Report> {
    let (share, elsewhere) = (arguments.scratch()?, tempfile::tempdir()?);
    let measure = |command: &str, turn: usize| -> Result<Vec<Cell>> {
        // A name of its own each time: no server waits for the one before it to let go.
        let socket = elsewhere.path().join(format!("socket-{turn}"));
        let server = Server::start(command, share.path(), &socket)?;
        let cells = measure_server(arguments, &socket, true).with_context(|| command.to_owned());
        drop(server);
        cells
    };
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds.max(1) {
        rounds.push([measure(a, 2 * round)?, measure(b, 2 * round + 1)?]);
    }
    Ok(Report::of_two([a, b], rounds))
}
