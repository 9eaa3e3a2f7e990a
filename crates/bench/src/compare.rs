//! Two servers in turns, on the same files; or two directories.

use std::path::Path;

use anyhow::{Context, Result};

use crate::native::Native;
use crate::process::Server;
use crate::report::{Cell, Report};
use crate::{BenchArguments, measure_cached, measure_calls, measure_requests};

pub(crate) fn compare(arguments: &BenchArguments, a: &str, b: &str) -> Result<Report> {
    let (share, elsewhere) = (arguments.scratch()?, tempfile::tempdir()?);
    let measure = |command: &str, turn: usize| -> Result<Vec<Cell>> {
        // A server and a socket of their own for each connection: some take one only, and none has to let go first.
        let serve = |kind: &str, measure: &dyn Fn(&Path) -> Result<Vec<Cell>>| -> Result<Vec<Cell>> {
            let socket = elsewhere.path().join(format!("{kind}-{turn}"));
            let _server = Server::start(command, share.path(), &socket)?;
            measure(&socket).with_context(|| command.to_owned())
        };
        let mut cells = Vec::new();
        if !arguments.chosen_raw().is_empty() {
            cells.extend(serve("requests", &|socket| measure_requests(arguments, socket, true))?);
        }
        if !arguments.chosen_cached().is_empty() {
            cells.extend(serve("cached", &|socket| measure_cached(arguments, socket))?);
        }
        Ok(cells)
    };
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds.max(1) {
        rounds.push([measure(a, 2 * round)?, measure(b, 2 * round + 1)?]);
    }
    Ok(Report::of_two([a, b], rounds))
}

pub(crate) fn compare_directories(arguments: &BenchArguments, a: &Path, b: &Path) -> Result<Report> {
    let natives = [Native::prepare(a)?, Native::prepare(b)?];
    let rounds = (0..arguments.rounds.max(1))
        .map(|_| Ok([measure_calls(arguments, &natives[0])?, measure_calls(arguments, &natives[1])?]))
        .collect::<Result<_>>()?;
    Ok(Report::of_two([&a.display().to_string(), &b.display().to_string()], rounds))
}
