//! A file system on a recorded disk, and work on it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use ashore_guest::workload::{Mark, Outcome, Plan, Progress, Scope, Target, run};

use super::disk::{Behaviour, Disk};
use super::disk_mount::DiskMount;
use super::mounts::{Image, Kind, LoopMount, copy_sparse, enter_private_mounts};
use super::replay::Recording;

/// What is to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The file system on the disk.
    pub kind: Kind,
    /// More options to mount it with.
    pub mount_options: &'static str,
    /// The work.
    pub plan: Plan,
    /// Writes and flushes are held for up to this time.
    pub hold: Duration,
    /// Flushes are answered and not done.
    pub drop_flushes: bool,
}

impl Scenario {
    /// A sound disk that holds its writes for up to 3 ms, and three threads.
    pub fn new(kind: Kind, seed: u64) -> Scenario {
        Scenario {
            kind,
            mount_options: "",
            plan: Plan { seed, threads: 3, operations: 150, clients: 1, floors_read_late: false },
            hold: Duration::from_millis(3),
            drop_flushes: false,
        }
    }
}

/// A file system that stands on a recorded disk, with a directory for each thread.
#[derive(Debug)]
pub struct Stage {
    // In this order they are dropped.
    mount: LoopMount,
    disk_mount: DiskMount,
    disk: Arc<Disk>,
    base: Image,
    _image: Image,
    scenario: Scenario,
}

impl Stage {
    /// Sets it up. The calling thread gets mounts of its own for good; what it starts shares them.
    pub fn new(scenario: &Scenario) -> Result<Stage> {
        enter_private_mounts()?;
        let kind = scenario.kind;
        let (image, base) = (Image::new(kind.length() + super::MARKER_AREA)?, Image::new(0)?);
        kind.make(&image.path())?;
        copy_sparse(&image.open()?, &base.open()?)?;
        let behaviour =
            Behaviour { seed: scenario.plan.seed, hold: scenario.hold, drop_flushes: scenario.drop_flushes };
        let disk = Arc::new(Disk::new(image.open()?, kind.length(), behaviour));
        let disk_mount = DiskMount::new(&disk)?;
        let mount = LoopMount::new(kind, &disk_mount.file(), scenario.mount_options)?;
        mount.use_direct_io()?;
        let stage = Stage { mount, disk_mount, disk, base, _image: image, scenario: *scenario };
        stage.make_directories()?;
        Ok(stage)
    }

    fn make_directories(&self) -> Result<()> {
        let threads = self.scenario.plan.threads;
        for thread in 0..threads {
            fs::create_dir(self.root().join(Plan::directory(thread)))?;
        }
        rustix::fs::syncfs(File::open(self.root())?)?;
        let floors = vec![0; threads as usize];
        self.disk.mark(Mark { thread: 0, scope: Scope::Everything, succeeded: true, floors });
        Ok(())
    }

    /// Where the threads work.
    pub fn root(&self) -> &Path {
        self.mount.path()
    }

    /// The file that the disk is, whose tail, [`MARKER_AREA`](super::MARKER_AREA) bytes from
    /// [`Kind::length`] on, takes marks: a disk for a guest.
    pub fn disk_file(&self) -> PathBuf {
        self.disk_mount.file()
    }

    /// The recorded disk.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Has all threads do their work on `target`, which must lead to [`Stage::root`]. A sync that has returned is marked
    /// by its thread at once.
    pub fn work(&self, target: &impl Target) -> Result<Outcome> {
        let plan = &self.scenario.plan;
        let outcome = self.work_until_error(target, 0..plan.threads, &Progress::new(plan));
        if !outcome.errors.is_empty() {
            bail!("the work failed: {}", outcome.errors.join("; "));
        }
        Ok(outcome)
    }

    /// As [`Stage::work`], of some of the threads, for work that may be broken off.
    pub fn work_until_error(
        &self,
        target: &impl Target,
        threads: Range<u32>,
        progress: &Progress,
    ) -> Outcome {
        let mark = |mark| {
            self.disk.mark(mark);
            io::Result::Ok(())
        };
        run(&self.scenario.plan, threads, target, progress, &mark)
    }

    /// What the disk has recorded up to now. Everything is unmounted, which is not recorded.
    pub fn finish(self, outcome: &Outcome) -> Recording {
        let log = self.disk.take_log();
        let Stage { base, scenario, .. } = self;
        Recording { kind: scenario.kind, plan: scenario.plan, base, log, steps: outcome.done.clone() }
    }
}
