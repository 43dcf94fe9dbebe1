//! rtnetlink(7): messages out, acknowledgements in. What is sent is built field by field; what comes is read with every length
//! checked.
//!
//! NL1  A socket belongs to the network namespace of the thread that opened it, wherever it is used.
//! NL2  One request at a time; an answer with another number is an old one's rest and skipped.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt};

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
pub(crate) const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_GETADDR: u16 = 22;
pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_GETROUTE: u16 = 26;

pub(crate) const CREATE: u16 = 0x400;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const DUMP: u16 = 0x300;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// Larger than any datagram that the kernel makes of links, addresses and routes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Answers to one request: a dump of more is not ours to read.
const ANSWERS_MAX: usize = 1 << 20;
/// How long the kernel may think.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message under construction: the fixed part of its family, then attributes.
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        Self { kind, flags, body: fixed.to_vec() }
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.body, kind, value);
        self
    }

    pub(crate) fn text(self, kind: u16, text: &str) -> Self {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat())
    }

    pub(crate) fn number(self, kind: u16, number: u32) -> Self {
        self.attribute(kind, &number.to_ne_bytes())
    }
}

/// Appends an attribute; lengths count their header, and each begins on four bytes.
pub(crate) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes that we make are short");
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// `struct ifinfomsg`.
pub(crate) fn link_info(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// Calls `visit` with each attribute; stops at the first that is malformed.
pub(crate) fn attributes(mut bytes: &[u8], mut visit: impl FnMut(u16, &[u8])) {
    while let Some((head, _)) = bytes.split_at_checked(4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let Some(value) = bytes.get(4..length) else { return };
        visit(kind, value);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// A socket to the kernel's network configuration.
pub(crate) struct Netlink {
    socket: OwnedFd,
    number: u32,
}

impl Netlink {
    /// Opens one in the network namespace of this thread (NL1).
    pub(crate) fn open() -> io::Result<Self> {
        // Protocol 0 of this family is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, number: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn change(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, ACKNOWLEDGE, &mut |_, _| {})
    }

    /// Sends a request and gives each message of its answer.
    pub(crate) fn ask(&mut self, message: Message, visit: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
        // A dump ends by a message of its own, everything else by its acknowledgement.
        let acknowledge = if message.flags & DUMP == DUMP { 0 } else { ACKNOWLEDGE };
        self.exchange(message, acknowledge, visit)
    }

    fn exchange(&mut self, message: Message, flags: u16, visit: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
        self.number = self.number.wrapping_add(1).max(1);
        let length = u32::try_from(HEADER + message.body.len()).expect("messages that we make are short");
        let mut bytes = Vec::with_capacity(HEADER + message.body.len());
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&message.kind.to_ne_bytes());
        bytes.extend_from_slice(&(message.flags | flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.number.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&message.body);
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        for _ in 0..ANSWERS_MAX {
            let (_, count) = recv(&self.socket, &mut answer[..], RecvFlags::TRUNC)?;
            let received = answer.get(..count).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            if let Some(outcome) = read(received, self.number, visit) {
                return outcome;
            }
        }
        Err(io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Reads one datagram; gives the outcome of the request if it is its end.
fn read(mut bytes: &[u8], number: u32, visit: &mut dyn FnMut(u16, &[u8])) -> Option<io::Result<()>> {
    let field = |bytes: &[u8], at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    while bytes.len() >= HEADER {
        let length = field(bytes, 0) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let Some(body) = bytes.get(HEADER..length) else {
            return Some(Err(io::Error::from(io::ErrorKind::InvalidData)));
        };
        if field(bytes, 8) == number {
            match kind {
                NLMSG_DONE => return Some(Ok(())),
                NLMSG_ERROR if body.len() >= 4 => {
                    let code = i32::from_ne_bytes([body[0], body[1], body[2], body[3]]);
                    return Some(if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) });
                }
                NLMSG_ERROR => return Some(Err(io::Error::from(io::ErrorKind::InvalidData))),
                kind => visit(kind, body),
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_put_and_read_and_malformed_ones_end_the_reading() {
        let mut body = Vec::new();
        put(&mut body, 3, b"eth0\0");
        put(&mut body, 4, &7_u32.to_ne_bytes());
        assert_eq!(body.len(), 12 + 8);
        let mut seen = Vec::new();
        attributes(&body, |kind, value| seen.push((kind, value.to_vec())));
        assert_eq!(seen, [(3, b"eth0\0".to_vec()), (4, 7_u32.to_ne_bytes().to_vec())]);
        for cut in 0..body.len() {
            let mut count = 0;
            attributes(&body[..cut], |_, _| count += 1);
            assert!(count < 2);
        }
        let mut zero = body.clone();
        zero[0] = 0;
        attributes(&zero, |_, _| panic!("an attribute without a header"));
    }

    #[test]
    fn an_answer_ends_with_its_own_number_and_a_short_one_is_an_error() {
        let message = |kind: u16, number: u32, body: &[u8]| {
            let mut bytes = (HEADER as u32 + body.len() as u32).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 2]);
            bytes.extend_from_slice(&number.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(body);
            bytes
        };
        let mut nothing = |_: u16, _: &[u8]| {};
        assert!(read(&message(NLMSG_ERROR, 1, &[0; 4]), 2, &mut nothing).is_none());
        assert!(matches!(read(&message(NLMSG_ERROR, 2, &[0; 4]), 2, &mut nothing), Some(Ok(()))));
        let refused = message(NLMSG_ERROR, 2, &(-19_i32).to_ne_bytes());
        let error = read(&refused, 2, &mut nothing).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(19));
        let mut long = refused.clone();
        long[0] = 200;
        assert!(matches!(read(&long, 2, &mut nothing), Some(Err(_))));
        assert!(matches!(read(&message(NLMSG_ERROR, 2, &[]), 2, &mut nothing), Some(Err(_))));
    }
}
