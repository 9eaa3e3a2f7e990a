//! The few messages between a test and the agent in its guest.
//!
//! ```text
//!   kind: u8 | id: u32 | length: u32 | payload          (little endian)
//! ```
//!
//! `id` names a command; the host chooses it. Output comes in order for each command and ends with one `Exit`.

use std::io::{self, Read, Write};

/// Name of the virtio-serial port that carries the frames.
pub const PORT_NAME: &str = "ashore";

/// Nobody sends more in one frame; a larger length means that the two sides have lost each other.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host: run the payload with `sh -c`.
    Spawn = 1,
    /// Host: power off, at once and without a sync.
    PowerOff = 2,
    /// Guest: up and listening; the payload is the kernel's release.
    Ready = 16,
    /// Guest: a piece of a command's standard output.
    Stdout = 17,
    /// Guest: a piece of a command's standard error.
    Stderr = 18,
    /// Guest: a command has ended; the payload is its exit code as an `i32`, 128 + n after signal n.
    Exit = 19,
}

impl Kind {
    fn from_byte(byte: u8) -> io::Result<Self> {
        [Self::Spawn, Self::PowerOff, Self::Ready, Self::Stdout, Self::Stderr, Self::Exit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| invalid(format!("no frame is of kind {byte}")))
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it says.
    pub kind: Kind,
    /// Which command it is about; 0 where it is about none.
    pub id: u32,
    /// The rest, as `kind` says.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame with this payload.
    pub fn new(kind: Kind, id: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, id, payload: payload.into() }
    }

    /// Sends the frame by a single write, so that frames of several threads do not mix behind a lock of the caller.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(9 + self.payload.len());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        out.write_all(&bytes)
    }

    /// The next frame, or `None` if the other side closed the channel between two frames.
    pub fn read_from(mut input: impl Read) -> io::Result<Option<Self>> {
        let Some(kind) = read_first(&mut input)? else { return Ok(None) };
        let kind = Kind::from_byte(kind)?;
        let id = read_u32(&mut input)?;
        let length = read_u32(&mut input)? as usize;
        if length > MAX_PAYLOAD {
            return Err(invalid(format!("a frame of {length} bytes is longer than any we send")));
        }
        let mut payload = vec![0; length];
        input.read_exact(&mut payload)?;
        Ok(Some(Self { kind, id, payload }))
    }

    /// The exit code in an `Exit` frame.
    pub fn exit_code(&self) -> io::Result<i32> {
        let bytes: [u8; 4] =
            self.payload.as_slice().try_into().map_err(|_| invalid("an exit code has four bytes".into()))?;
        Ok(i32::from_le_bytes(bytes))
    }
}

/// The byte with which a frame starts, or `None` at the end; a signal that comes in between is not an end.
fn read_first(input: &mut impl Read) -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_sent() {
        let frame = Frame::new(Kind::Stdout, 7, "hello");
        let mut bytes = Vec::new();
        frame.write_to(&mut bytes).unwrap();
        assert_eq!(Frame::read_from(bytes.as_slice()).unwrap(), Some(frame));
    }

    #[test]
    fn a_closed_channel_is_no_frame_and_a_torn_one_is_an_error() {
        assert_eq!(Frame::read_from(&[][..]).unwrap(), None);
        assert!(Frame::read_from(&[17, 1, 0][..]).is_err());
    }

    #[test]
    fn an_unknown_kind_and_a_huge_length_are_refused() {
        assert!(Frame::read_from(&[99, 0, 0, 0, 0, 0, 0, 0, 0][..]).is_err());
        assert!(Frame::read_from(&[17, 0, 0, 0, 0, 255, 255, 255, 255][..]).is_err());
    }
}
