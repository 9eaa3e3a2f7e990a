//! What a program may expect of a file system, as one list of cases for every assembly of ours: a file system in memory, a
//! directory of the host behind the server, over a socket, mounted, in a guest; and for those of others, to compare with.
//!
//! A case knows [`Files`] and nothing else, so it cannot know what stands between. Where the directory of the host is in reach
//! it looks there too ([`Stage::both_sides`]).

mod cases;
mod directory;
mod files;
mod through_client;

use std::any::Any;
use std::fmt::Write as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use directory::Directory;
pub use files::{Access, Attributes, Files, OpenFile, Space};
pub use through_client::ThroughClient;

/// One thing that a program may expect.
pub struct Case {
    /// What should happen, after the theme.
    pub name: &'static str,
    play: fn(&Stage),
}

/// All of them.
pub const CASES: &[Case] = cases::ALL;

/// Where a case is played: a directory of its own in the assembly, and the same one as the host sees it.
pub struct Stage {
    here: Arc<dyn Files>,
    there: Option<Arc<dyn Files>>,
}

impl Stage {
    /// What the assembly shows.
    pub fn files(&self) -> &dyn Files {
        &*self.here
    }

    /// Looks from both sides, after a sync: data that only the assembly knows of is no difference.
    ///
    /// Without the host in reach, from this side alone.
    #[track_caller]
    pub fn both_sides(&self, look: impl Fn(&dyn Files)) {
        self.here.sync().expect("a sync succeeds");
        look(&*self.here);
        if let Some(there) = &self.there {
            look(&**there);
        }
    }

    /// Looks at the host alone, where it is in reach: what must have arrived without a sync.
    pub fn on_the_host(&self, look: impl Fn(&dyn Files)) {
        if let Some(there) = &self.there {
            look(&**there);
        }
    }

    fn within(&self, name: &str) -> io::Result<Stage> {
        let here = Arc::clone(&self.here).make_within(name)?;
        let there = self.there.as_ref().map(|there| Arc::clone(there).within(name));
        Ok(Stage { here, there })
    }
}

/// What is held against the list.
pub struct Assembly {
    stage: Stage,
}

impl Assembly {
    /// An empty file system, and the host's directory behind it if it has one and it is in reach.
    pub fn new(here: impl Files + 'static, there: Option<Directory>) -> Assembly {
        let there = there.map(|there| Arc::new(there) as Arc<dyn Files>);
        Assembly { stage: Stage { here: Arc::new(here), there } }
    }

    /// Plays all cases, each in a directory of its own that it leaves behind.
    pub fn play(&self) -> Report {
        let outcome = |case: &'static Case| (case.name, self.play_one(case));
        Report { outcomes: CASES.iter().map(outcome).collect() }
    }

    fn play_one(&self, case: &Case) -> Result<(), String> {
        let place = case.name.replace("::", "-");
        let stage = self.stage.within(&place).map_err(|error| format!("no directory for it: {error}"))?;
        catch_unwind(AssertUnwindSafe(|| (case.play)(&stage))).map_err(|panic| words(&*panic))
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
}

/// How each case went.
pub struct Report {
    outcomes: Vec<(&'static str, Result<(), String>)>,
}

impl Report {
    /// Whether each case went as it should.
    pub fn conforms(&self) -> bool {
        self.outcomes.iter().all(|(_, outcome)| outcome.is_ok())
    }

    /// Panics with every case that failed.
    #[track_caller]
    pub fn assert_conforms(&self) {
        assert!(self.conforms(), "{self}");
    }
}

impl std::fmt::Display for Report {
    /// A line for each case, those that failed with what was wrong, and a last line with their numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let failed = self.outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
        for (name, outcome) in &self.outcomes {
            match outcome {
                Ok(()) => writeln!(f, "ok     {name}")?,
                Err(words) => writeln!(f, "FAILED {name}: {words}")?,
            }
        }
        write!(f, "{} cases, {failed} failed", self.outcomes.len())
    }
}

/// Everything below a directory as text, a line a name, with modes, owners and contents: equal texts are equal trees, but for times
/// and for names that are no text.
pub fn tree(files: &dyn Files) -> io::Result<String> {
    let mut text = String::new();
    add(files, "", &mut text)?;
    Ok(text)
}

fn add(files: &dyn Files, path: &str, text: &mut String) -> io::Result<()> {
    let mut names = files.names(path)?;
    names.sort();
    for name in names {
        let Some(name) = name.to_str() else { continue };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        let attributes = files.symlink_attributes(&path)?;
        let content = match attributes.kind() {
            files::REGULAR => format!("{:?}", files.read(&path)?),
            files::SYMLINK => format!("{:?}", files.read_link(&path)?),
            _ => String::new(),
        };
        _ = writeln!(text, "{path:?} {:o} {}:{} {content}", attributes.mode, attributes.uid, attributes.gid);
        if attributes.kind() == files::DIRECTORY {
            add(files, &path, text)?;
        }
    }
    Ok(())
}
