//! A tree that is changed at random through the client, and in the same way in a local directory: each call has to say
//! the same, and after every step the shared directory has to look the same.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ashore_client::{CacheMode, Client, File, OpenOptions};
use ashore_testkit::fsx::{Random, number};
use ashore_testkit::share::{SharedDirectory, Whose};

use crate::{CACHE_MODES, pattern, with_cache};

const STEPS: u64 = 2000;
const SEEDS: u64 = 4;
/// Files kept open from one step to another, at most.
const KEPT: usize = 4;
/// Bytes of a file, more or less.
const SIZE: u64 = 12_000;
/// After so many steps, the client is asked for everything.
const LOOK_EVERY: u64 = 25;

pub(crate) fn a_random_tree_is_the_same_as_a_local_one_after_every_step(whose: Whose) {
    let seeds = number("ASHORE_MODEL_SEED").map_or(1..SEEDS + 1, |seed| seed..seed + 1);
    for seed in seeds {
        for cache in CACHE_MODES {
            play(whose, cache, seed);
        }
    }
}

fn play(whose: Whose, cache: CacheMode, seed: u64) {
    let share = SharedDirectory::new(whose);
    let local = tempfile::tempdir().unwrap();
    let client = share.mount(with_cache(cache));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (syncing, over) = ((*client).clone(), &over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                syncing.sync().unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut both = Both {
            client: &client,
            share: share.path(),
            local: local.path().to_owned(),
            random: Random::new(seed),
            kept: Vec::new(),
            behind: HashSet::new(),
            lazy: cache == CacheMode::WriteBack,
            said: String::new(),
        };
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for step in 0..STEPS {
                both.step();
                both.shared_directory_is_the_same();
                if step % LOOK_EVERY == 0 {
                    both.client_sees_the_same();
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = played {
            eprintln!("failed: ASHORE_MODEL_SEED={seed}, {cache:?}, after {}", both.said);
            std::panic::resume_unwind(panic);
        }
    });
    client.leave();
}

/// The share and the local directory.
struct Both<'a> {
    client: &'a Client,
    share: PathBuf,
    local: PathBuf,
    random: Random,
    kept: Vec<(File, fs::File)>,
    /// Local inodes whose last writes may still be in the client's cache.
    behind: HashSet<u64>,
    lazy: bool,
    said: String,
}

/// What there is at a path.
#[derive(PartialEq, Eq, Debug)]
struct Found {
    mode: u32,
    names: u64,
    link: Option<PathBuf>,
    content: Option<Vec<u8>>,
}

impl Both<'_> {
    fn path(&mut self) -> PathBuf {
        let depth = 1 + self.random.below(3);
        (0..depth).map(|_| ["a", "b", "c", "d"][self.random.below(4) as usize]).collect()
    }

    fn data(&mut self) -> Vec<u8> {
        let length = self.random.below(SIZE) as usize;
        pattern(self.random.roll(), length)
    }

    fn step(&mut self) {
        let path = self.path();
        let here = self.local.join(&path);
        match self.random.below(100) {
            0..=13 => self.say("mkdir", &path, |client| client.create_dir(&path), fs::create_dir(&here)),
            14..=17 => self.say("rmdir", &path, |client| client.remove_dir(&path), fs::remove_dir(&here)),
            18..=33 => {
                let data = self.data();
                self.say("write", &path, |client| client.write(&path, &data), fs::write(&here, &data));
            }
            34..=38 => self.append(&path),
            39..=42 => self.resize(&path),
            43..=48 => self.say("unlink", &path, |client| client.remove_file(&path), fs::remove_file(&here)),
            49..=58 => {
                let to = self.path();
                let there = fs::rename(&here, self.local.join(&to));
                self.say(
                    &format!("rename to {}", to.display()),
                    &path,
                    |client| client.rename(&path, &to),
                    there,
                );
            }
            59..=62 => {
                let to = self.path();
                let there = fs::hard_link(&here, self.local.join(&to));
                self.say(
                    &format!("link to {}", to.display()),
                    &path,
                    |client| client.hard_link(&path, &to),
                    there,
                );
            }
            63..=66 => {
                let target = self.path();
                let there = symlink(&target, &here);
                self.say(
                    &format!("symlink to {}", target.display()),
                    &path,
                    |client| client.symlink(&target, &path),
                    there,
                );
            }
            67..=69 => {
                let mode = 0o600 + self.random.below(0o100) as u32;
                let there = fs::set_permissions(&here, fs::Permissions::from_mode(mode));
                self.say("chmod", &path, |client| client.set_mode(&path, mode), there);
            }
            70..=75 => self.say("read", &path, |client| client.read(&path), fs::read(&here)),
            76..=78 => self.list(&path),
            79..=83 => self.keep(&path),
            84..=91 => self.write_kept(),
            92..=95 => self.read_kept(),
            96..=97 => self.let_go(),
            _ => {
                self.client.sync().unwrap();
                self.behind.clear();
            }
        }
    }

    /// Both have said the same: the same value or the same error.
    fn say<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        path: &Path,
        ours: impl FnOnce(&Client) -> io::Result<T>,
        local: io::Result<T>,
    ) {
        self.said = format!("{what} {}", path.display());
        let errno = |error: io::Error| error.raw_os_error();
        let (ours, local) = (ours(self.client).map_err(errno), local.map_err(errno));
        assert!(ours == local, "{}: {:?} rather than {:?}", self.said, ours.map(drop), local.map(drop));
    }

    fn append(&mut self, path: &Path) {
        let data = self.data();
        let options = OpenOptions::new().append(true).create(true);
        let ours = |client: &Client| {
            let file = client.open_with(path, &options)?;
            file.write_all_at(&data, 0)?;
            file.close()
        };
        let local = fs::File::options().append(true).create(true).open(self.local.join(path));
        let local = local.and_then(|mut file| io::Write::write_all(&mut file, &data));
        self.say("append", path, ours, local);
    }

    fn resize(&mut self, path: &Path) {
        let size = self.random.below(SIZE);
        let ours = |client: &Client| {
            let file = client.open_with(path, &OpenOptions::new().write(true))?;
            file.set_len(size)?;
            file.close()
        };
        let local =
            fs::File::options().write(true).open(self.local.join(path)).and_then(|file| file.set_len(size));
        self.say("resize", path, ours, local);
    }

    fn list(&mut self, path: &Path) {
        let ours = |client: &Client| {
            let names = client.read_dir(path)?.into_iter().map(|entry| entry.file_name());
            let mut names: Vec<_> = names.collect();
            names.sort();
            Ok(names)
        };
        let local = fs::read_dir(self.local.join(path)).map(|entries| {
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        });
        self.say("list", path, ours, local);
    }

    fn keep(&mut self, path: &Path) {
        if self.kept.len() == KEPT {
            return self.let_go();
        }
        self.said = format!("keep {}", path.display());
        let ours = self.client.open_with(path, &OpenOptions::new().read(true).write(true).create(true));
        let mut options = fs::File::options();
        let local = options.read(true).write(true).create(true).truncate(false).mode(0o644);
        match (ours, local.open(self.local.join(path))) {
            (Ok(ours), Ok(local)) => self.kept.push((ours, local)),
            (ours, local) => assert_eq!(
                ours.map(drop).map_err(|error| error.raw_os_error()),
                local.map(drop).map_err(|error| error.raw_os_error()),
                "{}",
                self.said
            ),
        }
    }

    fn one_kept(&mut self) -> Option<usize> {
        (!self.kept.is_empty()).then(|| self.random.below(self.kept.len() as u64) as usize)
    }

    fn write_kept(&mut self) {
        let (Some(index), offset, data) = (self.one_kept(), self.random.below(SIZE), self.data()) else {
            return;
        };
        let (ours, local) = &self.kept[index];
        self.said = format!("write {} bytes at {offset} to a kept file", data.len());
        if data.len() % 5 == 0 {
            ours.set_len(offset).unwrap();
            local.set_len(offset).unwrap();
        } else {
            ours.write_all_at(&data, offset).unwrap();
            local.write_all_at(&data, offset).unwrap();
        }
        self.behind.insert(local.metadata().unwrap().ino());
    }

    fn read_kept(&mut self) {
        let Some(index) = self.one_kept() else { return };
        let (ours, local) = &self.kept[index];
        let there = local.metadata().unwrap();
        let about = ours.metadata().unwrap();
        assert_eq!(
            (about.len(), u64::from(about.nlink())),
            (there.len(), there.nlink()),
            "after {}",
            self.said
        );
        let (mut found, mut expected) = (vec![0; there.len() as usize + 9], vec![0; there.len() as usize]);
        let length = ours.read_at(&mut found, 0).unwrap();
        local.read_exact_at(&mut expected, 0).unwrap();
        assert!(found[..length] == expected, "a kept file, after {}", self.said);
    }

    fn let_go(&mut self) {
        let Some(index) = self.one_kept() else { return };
        let (ours, local) = self.kept.swap_remove(index);
        self.said = "close a kept file".into();
        ours.close().unwrap();
        self.behind.remove(&local.metadata().unwrap().ino());
    }

    fn shared_directory_is_the_same(&self) {
        let behind = if self.lazy { self.behind.clone() } else { HashSet::new() };
        let mut expected = BTreeMap::new();
        look(&self.local, Path::new(""), &mut expected);
        let mut found = BTreeMap::new();
        look(&self.share, Path::new(""), &mut found);
        for path in expected.keys().chain(found.keys()) {
            let (mut expected, mut found) = (at(&expected, path), at(&found, path));
            if behind.contains(&expected.0) {
                (expected.1.content, found.1.content) = (None, None);
            }
            assert!(found.1 == expected.1, "{}, after {}: on the host", path.display(), self.said);
        }
    }

    fn client_sees_the_same(&self) {
        let mut expected = BTreeMap::new();
        look(&self.local, Path::new(""), &mut expected);
        let mut count = 0;
        self.client_sees(Path::new(""), &expected, &mut count);
        assert_eq!(count, expected.len(), "after {}: names that the client lists", self.said);
    }

    fn client_sees(&self, directory: &Path, expected: &BTreeMap<PathBuf, (u64, Found)>, count: &mut usize) {
        for entry in self.client.read_dir(directory).unwrap() {
            *count += 1;
            let path = directory.join(entry.file_name());
            let about = self.client.symlink_metadata(&path).unwrap();
            let found = Found {
                mode: about.mode(),
                names: if about.is_dir() { 0 } else { about.nlink().into() },
                link: self.client.read_link(&path).ok(),
                content: (about.mode() & 0o170_000 == 0o100_000).then(|| self.client.read(&path).unwrap()),
            };
            let (_, expected_here) = &expected[&path];
            assert!(found == *expected_here, "{}, after {}: through the client", path.display(), self.said);
            if about.is_dir() {
                self.client_sees(&path, expected, count);
            }
        }
    }
}

fn at(found: &BTreeMap<PathBuf, (u64, Found)>, path: &Path) -> (u64, Found) {
    let (ino, found) = found.get(path).unwrap_or_else(|| panic!("{} is missing on one side", path.display()));
    let Found { mode, names, link, content } = found;
    (*ino, Found { mode: *mode, names: *names, link: link.clone(), content: content.clone() })
}

/// All that is below `root`/`below`, by path, with the inode's number.
fn look(root: &Path, below: &Path, found: &mut BTreeMap<PathBuf, (u64, Found)>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let (path, about) = (below.join(entry.file_name()), entry.metadata().unwrap());
        let whole = root.join(&path);
        let this = Found {
            mode: about.mode(),
            // Directories count differently on some file systems.
            names: if about.is_dir() { 0 } else { about.nlink() },
            link: about.is_symlink().then(|| fs::read_link(&whole).unwrap()),
            content: about.is_file().then(|| fs::read(&whole).unwrap()),
        };
        found.insert(path.clone(), (about.ino(), this));
        if about.is_dir() {
            look(root, &path, found);
        }
    }
}
