//! What is in files.

use std::thread;

use rustix::io::Errno;

use super::Stage;
use crate::conformance::files::{Access, OpenFile, SEEK_DATA, SEEK_HOLE, errno};

/// fallocate(2): the size stays.
const KEEP_SIZE: u32 = 1;
/// fallocate(2): a hole is punched, and the size stays.
const PUNCH: u32 = 2 | KEEP_SIZE;

const PAGE: usize = 4096;

/// Bytes that tell where they belong.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mix =
        |at: u64| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD6E8_FEB8_6659_FD93)) >> 32;
    (0..length as u64).map(|at| mix(at) as u8).collect()
}

pub(super) fn what_is_written_in_pieces_that_fit_nothing_is_read_back(stage: &Stage) {
    let files = stage.files();
    let mut whole = pattern(1, 37_001);
    let file = files.create("whole").unwrap();
    for (index, piece) in whole.chunks(777).enumerate() {
        file.write_all_at(piece, index as u64 * 777).unwrap();
    }
    assert!(files.read("whole").unwrap() == whole, "before a sync");
    stage.both_sides(|files| assert!(files.read("whole").unwrap() == whole));
    file.write_all_at(b"again", 100).unwrap();
    whole[100..105].copy_from_slice(b"again");
    let mut piece = vec![0; 5_000];
    file.read_exact_at(&mut piece, 4_000).unwrap();
    assert!(piece == whole[4_000..9_000]);
    drop(file);
    stage.both_sides(|files| assert!(files.read("whole").unwrap() == whole));
}

pub(super) fn a_file_larger_than_a_request_is_there_when_it_is_closed(stage: &Stage) {
    let large = pattern(2, (9 << 20) + 4321);
    stage.files().write("large", &large).unwrap();
    stage.on_the_host(|files| assert!(files.read("large").unwrap() == large, "closed is sent"));
    stage.both_sides(|files| assert!(files.read("large").unwrap() == large));
    let mut part = vec![0; 100_000];
    let file = stage.files().open("large".as_ref(), &Access::READ).unwrap();
    file.read_exact_at(&mut part, 4_000_001).unwrap();
    assert!(part == large[4_000_001..4_100_001]);
}

pub(super) fn nothing_is_read_at_the_end_and_behind_it(stage: &Stage) {
    let files = stage.files();
    let file = files.create("file").unwrap();
    let mut buffer = [7; 10];
    assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 0);
    file.write_all_at(b"12345", 0).unwrap();
    assert_eq!(file.read_at(&mut buffer, 5).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 3).unwrap(), 2);
    assert_eq!(buffer[..3], [b'4', b'5', 7], "and no more than that is changed");
    assert_eq!(file.write_at(b"", 100).unwrap(), 0);
    stage.both_sides(|files| assert_eq!(files.attributes("file").unwrap().size, 5));
}

pub(super) fn two_who_have_a_file_open_see_each_others_writes(stage: &Stage) {
    let files = stage.files();
    let first = files.create("file").unwrap();
    let second = files.open("file".as_ref(), &Access::BOTH).unwrap();
    for round in 0..20u8 {
        let (writer, reader) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        writer.write_all_at(&[round; 3_000], u64::from(round) * 2_000).unwrap();
        let mut seen = [0; 3_000];
        reader.read_exact_at(&mut seen, u64::from(round) * 2_000).unwrap();
        assert_eq!(seen, [round; 3_000]);
        assert_eq!(reader.attributes().unwrap().size, u64::from(round) * 2_000 + 3_000);
    }
}

pub(super) fn who_has_not_opened_for_it_may_not_read_or_write(stage: &Stage) {
    let files = stage.files();
    files.write("file", b"content").unwrap();
    let reader = files.open("file".as_ref(), &Access::READ).unwrap();
    assert_eq!(errno(reader.write_at(b"x", 0)), Errno::BADF);
    let writer = files.open("file".as_ref(), &Access { read: false, ..Access::BOTH }).unwrap();
    assert_eq!(errno(writer.read_at(&mut [0], 0)), Errno::BADF);
    writer.write_all_at(b"C", 0).unwrap();
    assert_eq!(files.read("file").unwrap(), b"Content");
}

pub(super) fn appenders_write_behind_each_other(stage: &Stage) {
    let files = stage.files();
    let append = Access { append: true, create: true, ..Access::BOTH };
    let logs = [(); 3].map(|()| files.open("log".as_ref(), &append).unwrap());
    let mut expected = String::new();
    for line in 0..300 {
        let text = format!("line {line} of a log that several write\n");
        assert_eq!(logs[line % 3].write_at(text.as_bytes(), 0).unwrap(), text.len());
        expected += &text;
    }
    stage.both_sides(|files| assert_eq!(files.read("log").unwrap(), expected.as_bytes()));
}

pub(super) fn truncating_and_growing_leaves_zeros(stage: &Stage) {
    let whole = pattern(3, 37_001);
    let file = stage.files().create("file").unwrap();
    file.write_all_at(&whole, 0).unwrap();
    file.set_size(5_000).unwrap();
    file.set_size(9_000).unwrap();
    file.write_all_at(b"far behind", 50_000).unwrap();
    let mut expected = whole[..5_000].to_vec();
    expected.resize(50_000, 0);
    expected.extend_from_slice(b"far behind");
    assert!(stage.files().read("file").unwrap() == expected, "before a sync");
    stage.both_sides(|files| assert!(files.read("file").unwrap() == expected));
}

pub(super) fn opening_to_truncate_empties_a_file_for_all(stage: &Stage) {
    let files = stage.files();
    files.write("file", &pattern(4, 10_000)).unwrap();
    let file = files.open("file".as_ref(), &Access::BOTH).unwrap();
    drop(files.create("file").unwrap());
    assert_eq!(file.attributes().unwrap().size, 0);
    assert_eq!(file.read_at(&mut [0; 10], 0).unwrap(), 0);
    file.write_all_at(b"anew", 2).unwrap();
    stage.both_sides(|files| assert_eq!(files.read("file").unwrap(), b"\0\0anew"));
}

pub(super) fn a_write_far_behind_the_end_leaves_a_hole(stage: &Stage) {
    let file = stage.files().create("file").unwrap();
    file.write_all_at(b"end", 40 << 20).unwrap();
    stage.both_sides(|files| {
        assert_eq!(files.attributes("file").unwrap().size, (40 << 20) + 3);
        let file = files.open("file".as_ref(), &Access::READ).unwrap();
        let mut seen = vec![1; 100_000];
        file.read_exact_at(&mut seen, 20 << 20).unwrap();
        assert!(seen.iter().all(|byte| *byte == 0));
        file.read_exact_at(&mut seen[..5], (40 << 20) - 2).unwrap();
        assert_eq!(seen[..5], *b"\0\0end");
    });
}

pub(super) fn holes_are_found_and_punched(stage: &Stage) {
    let file = stage.files().create("sparse").unwrap();
    let mut data = pattern(5, 1 << 16);
    file.write_all_at(&data, 1 << 20).unwrap();
    file.set_size(2 << 20).unwrap();
    assert_eq!(file.seek(0, SEEK_DATA).unwrap(), 1 << 20);
    assert_eq!(file.seek(1 << 20, SEEK_HOLE).unwrap(), (1 << 20) + (1 << 16));
    assert_eq!(errno(file.seek((1 << 20) + (1 << 16), SEEK_DATA)), Errno::NXIO);
    assert_eq!(errno(file.seek(3 << 20, SEEK_HOLE)), Errno::NXIO);
    file.allocate(PUNCH, (1 << 20) + 4_096, 8_000).unwrap();
    data[4_096..4_096 + 8_000].fill(0);
    stage.both_sides(|files| {
        let file = files.open("sparse".as_ref(), &Access::READ).unwrap();
        let mut seen = vec![0; 1 << 16];
        file.read_exact_at(&mut seen, 1 << 20).unwrap();
        assert!(seen == data);
        assert_eq!(file.attributes().unwrap().size, 2 << 20);
    });
}

pub(super) fn space_is_allocated_with_and_without_the_size(stage: &Stage) {
    let file = stage.files().create("file").unwrap();
    file.write_all_at(b"content", 0).unwrap();
    file.allocate(KEEP_SIZE, 0, 100_000).unwrap();
    assert_eq!(file.attributes().unwrap().size, 7);
    file.allocate(0, 4, 10).unwrap();
    assert_eq!(file.attributes().unwrap().size, 14);
    file.allocate(0, 0, 5).unwrap();
    assert_eq!(errno(file.allocate(0, 0, 0)), Errno::INVAL);
    stage.both_sides(|files| assert_eq!(files.read("file").unwrap(), b"content\0\0\0\0\0\0\0"));
}

pub(super) fn a_part_is_copied_from_one_file_to_another(stage: &Stage) {
    let files = stage.files();
    let source = pattern(6, 1 << 16);
    files.write("source", &source).unwrap();
    files.write("target", b"old").unwrap();
    assert_eq!(files.copy(("source", 1_000), ("target", 100), 50_000).unwrap(), 50_000);
    let mut expected = b"old".to_vec();
    expected.resize(100, 0);
    expected.extend_from_slice(&source[1_000..51_000]);
    assert!(files.read("target").unwrap() == expected, "before a sync");
    stage.both_sides(|files| assert!(files.read("target").unwrap() == expected));
    assert_eq!(
        files.copy(("source", 60_000), ("target", 0), 50_000).unwrap(),
        (1 << 16) - 60_000,
        "up to the end"
    );
    assert_eq!(files.copy(("source", 1 << 16), ("target", 0), 10).unwrap(), 0);
}

pub(super) fn direct_and_ordinary_reads_and_writes_agree(stage: &Stage) {
    let files = stage.files();
    let ordinary = files.create("file").unwrap();
    let direct = files.open("file".as_ref(), &Access { direct: true, ..Access::BOTH }).unwrap();
    let mut memory = vec![0; 17 * PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[start..start + 16 * PAGE];
    ordinary.write_all_at(&pattern(7, buffer.len()), 0).unwrap();
    assert_eq!(direct.read_at(buffer, 0).unwrap(), buffer.len());
    assert!(buffer == pattern(7, buffer.len()), "written ordinarily, read directly");
    let middle = &mut buffer[..4 * PAGE];
    middle.copy_from_slice(&pattern(8, 4 * PAGE));
    assert_eq!(direct.write_at(middle, 8 * PAGE as u64).unwrap(), middle.len());
    let mut expected = pattern(7, 16 * PAGE);
    expected[8 * PAGE..12 * PAGE].copy_from_slice(&pattern(8, 4 * PAGE));
    let mut seen = vec![0; 16 * PAGE];
    ordinary.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected, "written directly, read ordinarily");
    stage.both_sides(|files| assert!(files.read("file").unwrap() == expected));
}

pub(super) fn many_write_to_places_of_their_own_in_one_file(stage: &Stage) {
    const EACH: usize = 10_000;
    let file = stage.files().create("file").unwrap();
    let whole = pattern(9, 8 * EACH);
    thread::scope(|scope| {
        for (index, part) in whole.chunks(EACH).enumerate() {
            let file: &dyn OpenFile = &*file;
            scope.spawn(move || {
                for (piece_index, piece) in part.chunks(499).enumerate() {
                    file.write_all_at(piece, (index * EACH + piece_index * 499) as u64).unwrap();
                }
            });
        }
    });
    assert!(stage.files().read("file").unwrap() == whole, "before a sync");
    stage.both_sides(|files| assert!(files.read("file").unwrap() == whole));
}

pub(super) fn an_unlinked_file_lives_while_it_is_open(stage: &Stage) {
    let files = stage.files();
    let file = files.create("gone").unwrap();
    file.write_all_at(b"before", 0).unwrap();
    files.remove_file("gone").unwrap();
    stage.both_sides(|files| assert!(!files.exists("gone")));
    file.write_all_at(b" and after", 6).unwrap();
    files.sync().unwrap();
    let mut back = [0; 16];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"before and after");
    assert_eq!(file.attributes().unwrap().nlink, 0);
    file.set_size(3).unwrap();
    assert_eq!(file.attributes().unwrap().size, 3);
    files.write("gone", b"another of that name").unwrap();
    drop(file);
    stage.both_sides(|files| assert_eq!(files.read("gone").unwrap(), b"another of that name"));
}
