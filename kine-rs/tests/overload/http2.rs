//! HTTP/2 by hand: frames as they are, windows that open only when a test says so.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a test waits for a frame.
const DEADLINE: Duration = Duration::from_secs(120);

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn ends(&self, stream: u32) -> bool {
        self.stream == stream
            && (self.kind == RST_STREAM
                || (matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Goaway {
    pub last_stream: u32,
    pub code: u32,
    pub reason: String,
}

impl Goaway {
    fn parse(payload: &[u8]) -> Goaway {
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        let reason = String::from_utf8_lossy(&payload[8..]).into_owned();
        Goaway { last_stream: number(0), code: number(4), reason }
    }
}

pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    next_stream: u32,
    /// What the server said before it closed the connection.
    goaway: Option<Goaway>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::with_window(address, 65_535)
    }

    /// A client whose streams have this window for a start.
    pub fn with_window(address: SocketAddr, window: u32) -> Client {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
        let mut client = Client { stream, received: Vec::new(), next_stream: 1, goaway: None };
        client.stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sent");
        let setting = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat();
        client.send(SETTINGS, 0, 0, &setting);
        // The server's windows are those it names here, once that is acknowledged.
        client.until(|frame| frame.kind == SETTINGS && frame.flags & ACK == 0).expect("settings");
        client
    }

    /// A client that may send as much as our server takes in for a start.
    pub fn sending(address: SocketAddr) -> Client {
        let mut client = Client::connect(address);
        client.until(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 0).expect("a wide connection");
        client
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        if let Err(error) = self.try_send(kind, flags, stream, payload) {
            panic!("sending on stream {stream}: {error}; before: {:?}", self.goaway());
        }
    }

    pub fn try_send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        self.try_send_bytes(&frame(kind, flags, stream, payload))
    }

    /// Frames that are encoded already.
    pub fn try_send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Leaves out stream numbers that a test used by itself.
    pub fn skip_streams(&mut self, streams: u32) {
        self.next_stream += 2 * streams;
    }

    /// Opens a stream for a gRPC call, without a message.
    pub fn open(&mut self, path: &str) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        self.send(HEADERS, END_HEADERS, stream, &request_headers(path));
        stream
    }

    /// Sends one gRPC message on a stream.
    pub fn message(&mut self, stream: u32, message: &impl prost::Message, last: bool) {
        let encoded = message.encode_to_vec();
        let framed = [&[0][..], &(encoded.len() as u32).to_be_bytes(), &encoded].concat();
        self.send(DATA, if last { END_STREAM } else { 0 }, stream, &framed);
    }

    /// A call with one message.
    pub fn call(&mut self, path: &str, message: &impl prost::Message) -> u32 {
        let stream = self.open(path);
        self.message(stream, message, true);
        stream
    }

    pub fn allow(&mut self, stream: u32, bytes: u32) {
        self.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    }

    /// The next frame; `None` when the server has closed the connection. Settings are acknowledged.
    pub fn next(&mut self) -> Option<Frame> {
        let length = self.at_least(9).then(|| {
            u32::from_be_bytes([0, self.received[0], self.received[1], self.received[2]]) as usize
        })?;
        if !self.at_least(9 + length) {
            return None;
        }
        let bytes: Vec<u8> = self.received.drain(..9 + length).collect();
        let stream = u32::from_be_bytes(bytes[5..9].try_into().expect("four bytes"));
        let frame = Frame { kind: bytes[3], flags: bytes[4], stream, payload: bytes[9..].to_vec() };
        if frame.kind == SETTINGS && frame.flags & ACK == 0 {
            // The server may be gone already; then that is seen when it is read from.
            self.try_send(SETTINGS, ACK, 0, &[]).ok();
        }
        if frame.kind == GOAWAY {
            self.goaway = Some(Goaway::parse(&frame.payload));
        }
        Some(frame)
    }

    /// The first frame that is `wanted`; `None` when the connection ends before.
    pub fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Reads a response to its end, opening the windows as it goes; its DATA, and whether it was complete.
    pub fn read_to_end(&mut self, stream: u32) -> (Vec<u8>, bool) {
        let mut data = Vec::new();
        loop {
            let Some(frame) = self.next() else { return (data, false) };
            if frame.kind == DATA && !frame.payload.is_empty() {
                let bytes = frame.payload.len() as u32;
                self.allow(0, bytes);
                if frame.stream == stream {
                    self.allow(stream, bytes);
                    data.extend_from_slice(&frame.payload);
                }
            }
            if frame.ends(stream) {
                return (data, frame.kind != RST_STREAM);
            }
        }
    }

    /// Reads until the server has closed the connection; what it said before.
    pub fn goaway(&mut self) -> Option<Goaway> {
        while self.next().is_some() {}
        self.goaway.take()
    }

    fn at_least(&mut self, bytes: usize) -> bool {
        let mut buffer = [0; 16 << 10];
        while self.received.len() < bytes {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("waiting for a frame: {error}"),
            }
        }
        true
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The headers of a gRPC request, none of them compressed.
pub fn request_headers(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

/// One header that the receiver is not to remember.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        assert!(text.len() < 127, "lengths of one byte only");
        [&[text.len() as u8], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}
