//! Any bytes as the head of a request: they are a request, or an error with a number.

#![no_main]

use ashore_wire::request::Dialect;
use ashore_wire::seam::head_length;
use ashore_wire::{Operation, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, message)) = bytes.split_first() else { return };
    let dialect = Dialect { setxattr_ext: choice & 1 != 0 };
    // As a transport hands them over: the head in memory that is aligned, the payload only as a length.
    let mut words = vec![0u64; message.len().div_ceil(8)];
    // SAFETY: any bytes are valid in a vector of integers, and it is at least as long.
    let aligned = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), message.len()) };
    aligned.copy_from_slice(message);
    let opcode = message.get(4..8).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()));
    let length = head_length(opcode, message.len());
    match Request::parse(&aligned[..length], message.len() - length, dialect) {
        Ok(request) => {
            assert_eq!(Some(request.id), Request::id_of(&aligned[..length]));
            if let Operation::Write { size, .. } = request.operation {
                assert!(size as usize <= message.len() - length, "data that is not there");
            }
            std::hint::black_box(format!("{request:?}"));
        }
        Err(error) => assert!(error.errno().raw() > 0),
    }
});
