//! A network of the test's own: a namespace with an address that is no loopback address, for what differs between the two.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::command::succeed;

/// The address of a test's network, on its loopback interface: nothing leaves the machine.
pub const ADDRESS: &str = "10.99.0.1";

/// A network namespace. Dropping it removes it.
#[derive(Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// Makes one with [`ADDRESS`] and `127.0.0.1`.
    ///
    /// # Errors
    /// If `ip` is missing or fails.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("bt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        succeed("ip", &["netns", "add", &name])?;
        let network = Self { name };
        succeed("ip", &["-n", &network.name, "link", "set", "lo", "up"])?;
        succeed("ip", &["-n", &network.name, "address", "add", &format!("{ADDRESS}/32"), "dev", "lo"])?;
        Ok(network)
    }

    /// The namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = succeed("ip", &["netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// A command for `program`, inside the network if there is one. (`ip netns exec` would hide the control groups.)
pub fn in_network(name: Option<&str>, program: &str) -> Command {
    match name {
        Some(name) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
            command
        }
        None => Command::new(program),
    }
}
