//! A server in this process, and HTTP by hand.

use kine_rs::backend::Endpoint;
use kine_rs::config::{Config, Listen};
use kine_rs::embed::Datastore;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub struct Server {
    datastore: Datastore,
}

pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub headers: String,
    pub body: String,
}

impl Server {
    pub fn start(config: Config) -> Server {
        Server::start_at(vec![Listen::Tcp(([127, 0, 0, 1], 0).into())], config)
    }

    pub fn start_at(listen: Vec<Listen>, config: Config) -> Server {
        let config = Config { endpoint: Endpoint::Memory, listen, ..config };
        Server { datastore: Datastore::start(config).expect("the server starts") }
    }

    pub fn address(&self) -> SocketAddr {
        self.datastore.addresses()[0]
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        self.datastore.addresses()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn get(&self, path: &str) -> Answer {
        ask(self.address(), &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n"), "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        ask(self.address(), &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n"), body)
    }

    pub fn stop(self) {
        self.datastore.stop(Duration::from_secs(5));
    }
}

/// One HTTP/1.1 exchange on a connection of its own.
pub fn ask(address: SocketAddr, head: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let length = body.len();
    write!(stream, "{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (headers, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = headers.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, headers: headers.to_lowercase(), body: body.to_owned() }
}
