//! What a sync reaches. That it is stable there, power cuts show; here, that it has arrived.

use rustix::io::Errno;

use super::Stage;
use crate::conformance::files::{Access, errno};

pub(super) fn what_a_file_sync_was_asked_for_is_on_the_host(stage: &Stage) {
    let file = stage.files().create("file").unwrap();
    for round in 0..10u8 {
        let content = vec![round; 5_000 * (usize::from(round) + 1)];
        file.write_all_at(&content, 0).unwrap();
        if round % 2 == 0 { file.sync_all() } else { file.sync_data() }.unwrap();
        stage.on_the_host(|files| assert!(files.read("file").unwrap() == content, "round {round}"));
    }
}

pub(super) fn what_was_written_with_dsync_is_on_the_host_when_the_write_returns(stage: &Stage) {
    let access = Access { data_sync: true, create: true, ..Access::BOTH };
    let file = stage.files().open("file".as_ref(), &access).unwrap();
    for round in 0..10u8 {
        file.write_all_at(&[round; 5_000], 0).unwrap();
        stage.on_the_host(|files| assert!(files.read("file").unwrap() == [round; 5_000], "round {round}"));
    }
}

pub(super) fn a_sync_of_all_reaches_every_file_and_directory(stage: &Stage) {
    let files = stage.files();
    files.make_directory("directory").unwrap();
    let paths: Vec<_> = (0..50).map(|index| format!("directory/{index}")).collect();
    let opened: Vec<_> = paths.iter().map(|path| files.create(path).unwrap()).collect();
    for (path, file) in paths.iter().zip(&opened) {
        file.write_all_at(path.as_bytes(), 3_000).unwrap();
    }
    files.sync_directory("directory").unwrap();
    stage.both_sides(|files| {
        for path in &paths {
            assert_eq!(files.read(path).unwrap()[3_000..], *path.as_bytes());
        }
    });
    drop(opened);
    assert_eq!(errno(files.sync_directory("nowhere")), Errno::NOENT);
}
