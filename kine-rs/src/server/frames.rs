//! HTTP/2 frames in a stream of bytes: their heads, wherever the pieces end.
//!
//! Looks at nine bytes of each frame and steps over the rest, without copying or keeping any of it. Knows nothing of what
//! frames mean: `pings` does.

const HEAD_BYTES: usize = 9;
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PING: u8 = 6;
/// Flag of a PING that answers one.
pub const ACK: u8 = 1;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

/// Where in a frame the bytes seen so far end.
#[derive(Debug, Default)]
pub struct Frames {
    head: [u8; HEAD_BYTES],
    head_len: usize,
    payload_left: usize,
}

impl Frames {
    /// Shows each head that is complete with these bytes.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Head)) {
        loop {
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = (HEAD_BYTES - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len == HEAD_BYTES {
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
                self.head_len = 0;
                each(Head { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) });
            }
        }
    }

    /// Whether the last frame is complete.
    pub fn is_between(&self) -> bool {
        self.head_len == 0 && self.payload_left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_found_wherever_the_pieces_end() {
        let ping = [&[0, 0, 8, PING, ACK, 0, 0, 0, 0][..], &[7; 8]].concat();
        let data = [&[0, 0, 3, DATA, 1, 0x80, 0, 1, 2][..], &[0; 3]].concat();
        let bytes = [ping, data, vec![0, 0, 0, 4, 1, 0, 0, 0, 0]].concat();
        let expected = [
            Head { kind: PING, flags: ACK, stream: 0 },
            Head { kind: DATA, flags: 1, stream: 258 },
            Head { kind: 4, flags: 1, stream: 0 },
        ];
        for step in 1..=bytes.len() {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(step) {
                frames.feed(piece, |head| found.push(head));
            }
            assert_eq!(found, expected, "in pieces of {step}");
            assert!(frames.is_between());
            frames.feed(&[0], |_| ());
            assert!(!frames.is_between());
        }
    }
}
