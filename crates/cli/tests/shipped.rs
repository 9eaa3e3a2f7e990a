//! The program as it is shipped: `cargo xtask test shipped` builds it for release.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is the failed test")]

/// The crates that have deliberate bugs, which only a build with `--cfg mutants` may hold.
const MUTANTS: [&str; 4] = [
    include_str!("../../barrier/src/mutant.rs"),
    include_str!("../../client/src/mutant.rs"),
    include_str!("../../passthrough/src/mutant.rs"),
    include_str!("../../server/src/mutant.rs"),
];

/// The deliberate bugs that the tests are tried on are in no other build than theirs: neither the variable that chooses one nor
/// the names of the bugs, which such a build compares with what they hold.
#[test]
fn the_program_has_no_deliberate_bugs_in_it() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_ashore")).unwrap();
    // Only what is loaded counts: the tables for debuggers name every variant of every type.
    let loaded = loaded(&program);
    let holds =
        |word: &str| loaded.iter().any(|part| part.windows(word.len()).any(|bytes| bytes == word.as_bytes()));
    assert!(holds("--early-sync-grace"), "the words of the program can be found in it");
    assert!(!holds("ASHORE_MUTANT"));
    let names = MUTANTS.iter().flat_map(|source| {
        let (_, bugs) = source.split_once("enum Mutant {").unwrap();
        bugs.split_once('}').unwrap().0.lines().filter_map(|line| line.trim().strip_suffix(','))
    });
    let names: Vec<_> = names.filter(|name| !name.starts_with("///")).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        assert!(!holds(name), "{name} is in the program");
    }
}

/// The parts of an ELF file that are mapped when it runs (program headers of kind PT_LOAD; elf(5)).
fn loaded(program: &[u8]) -> Vec<&[u8]> {
    let number = |at: usize, bytes: usize| {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&program[at..at + bytes]);
        u64::from_le_bytes(value) as usize
    };
    assert_eq!(&program[..6], b"\x7fELF\x02\x01", "64 bits, little-endian");
    let (headers, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let headers = (0..count).map(|index| headers + index * size);
    let load = headers.filter(|header| number(*header, 4) == 1);
    load.map(|header| &program[number(header + 8, 8)..][..number(header + 32, 8)]).collect()
}
