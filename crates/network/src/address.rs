//! Subnets, and which address of one is free.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// An address with the length of its network's prefix: `172.17.0.1/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Net {
    /// An address of the network.
    pub address: Ipv4Addr,
    /// 8 to 30.
    pub prefix: u8,
}

/// The same for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Net {
    /// An address of the network.
    pub address: Ipv6Addr,
    /// 48 to 120.
    pub prefix: u8,
}

impl Ipv4Net {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The network: all bits after the prefix zero.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & self.mask())
    }

    /// The address of everybody in it.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network().to_bits() | !self.mask())
    }

    /// `172.17.0.0/16`.
    pub fn cidr(self) -> String {
        format!("{}/{}", self.network(), self.prefix)
    }

    /// Whether an address is of this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask() == self.network().to_bits()
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }

    /// The lowest free address of a host; `wanted` if that is one.
    pub(crate) fn free(self, taken: impl Fn(Ipv4Addr) -> bool, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let usable = |address: Ipv4Addr| {
            self.contains(address)
                && address != self.network()
                && address != self.broadcast()
                && address != self.address
                && !taken(address)
        };
        if let Some(wanted) = wanted.filter(|wanted| usable(*wanted)) {
            return Some(wanted);
        }
        // At most as many are taken as containers exist, so this ends soon whatever the prefix is.
        let (first, last) = (self.network().to_bits(), self.broadcast().to_bits());
        (first..=last).map(Ipv4Addr::from_bits).find(|address| usable(*address))
    }
}

impl Ipv6Net {
    /// `fd00::/64`.
    pub fn cidr(self) -> String {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        format!("{}/{}", Ipv6Addr::from_bits(self.address.to_bits() & mask), self.prefix)
    }

    /// The address that goes with an IPv4 one: its bits in the low 32 of the network, so that one pool serves both.
    pub(crate) fn paired(self, address: Ipv4Addr, of: Ipv4Net) -> Ipv6Addr {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        let host = address.to_bits() & !of.network().to_bits();
        Ipv6Addr::from_bits((self.address.to_bits() & mask) | u128::from(host))
    }
}

/// The hardware address that goes with an address, so that a neighbour's cache stays true when the container starts anew.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Display for Ipv6Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Ipv4Net {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::BadSubnet { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let net = Self { address: address.parse().map_err(|_| bad())?, prefix: prefix.parse().map_err(|_| bad())? };
        if (8..=30).contains(&net.prefix) { Ok(net) } else { Err(bad()) }
    }
}

impl FromStr for Ipv6Net {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::BadSubnet { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let net = Self { address: address.parse().map_err(|_| bad())?, prefix: prefix.parse().map_err(|_| bad())? };
        // A subnet has room for the 24 bits of the largest IPv4 one.
        if (48..=104).contains(&net.prefix) { Ok(net) } else { Err(bad()) }
    }
}

/// The first of the usual private networks that overlaps with none of `used`; the gateway is its first address.
pub(crate) fn choose(used: &[Ipv4Net]) -> Option<Ipv4Net> {
    let large = (17..32).map(|second| Ipv4Net { address: Ipv4Addr::new(172, second, 0, 1), prefix: 16 });
    let small = (0..16).map(|third| Ipv4Net { address: Ipv4Addr::new(192, 168, third * 16, 1), prefix: 20 });
    large.chain(small).find(|net| !used.iter().any(|used| used.overlaps(*net)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_shown() {
        let net: Ipv4Net = "172.20.3.1/22".parse().unwrap();
        assert_eq!((net.cidr().as_str(), net.broadcast()), ("172.20.0.0/22", Ipv4Addr::new(172, 20, 3, 255)));
        assert!(net.contains(Ipv4Addr::new(172, 20, 1, 200)) && !net.contains(Ipv4Addr::new(172, 20, 4, 0)));
        for bad in ["", "1.2.3.4", "1.2.3.4/33", "1.2.3.4/31", "1.2.3.4/0", "1.2.3/8", "::1/64"] {
            assert!(bad.parse::<Ipv4Net>().is_err(), "{bad}");
        }
        for bad in ["", "::1", "fd00::1/128", "fd00::1/20", "1.2.3.4/64"] {
            assert!(bad.parse::<Ipv6Net>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_given_until_none_is_left_and_come_back_to_their_owner() {
        let net: Ipv4Net = "10.0.0.1/29".parse().unwrap();
        let mut taken = Vec::new();
        while let Some(address) = net.free(|address| taken.contains(&address), None) {
            taken.push(address);
        }
        assert_eq!(taken, [2, 3, 4, 5, 6].map(|last| Ipv4Addr::new(10, 0, 0, last)));
        let again = net.free(|_| false, Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(again, Some(Ipv4Addr::new(10, 0, 0, 5)));
        for useless in ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.1.5"] {
            let given = net.free(|_| false, Some(useless.parse().unwrap()));
            assert_eq!(given, Some(Ipv4Addr::new(10, 0, 0, 2)), "{useless}");
        }
    }

    #[test]
    fn a_network_of_the_hosts_is_never_chosen() {
        assert_eq!(choose(&[]).unwrap().to_string(), "172.17.0.1/16");
        let used = ["172.16.0.0/12".parse().unwrap(), "192.168.8.0/24".parse().unwrap()];
        assert_eq!(choose(&used).unwrap().to_string(), "192.168.16.1/20");
        assert_eq!(
            choose(&[
                "128.0.0.0/8".parse().unwrap(),
                "172.16.0.0/12".parse().unwrap(),
                "192.168.0.0/16".parse().unwrap()
            ]),
            None
        );
    }

    #[test]
    fn an_address_has_its_partner_in_the_other_family() {
        let (net, six): (Ipv4Net, Ipv6Net) = ("172.17.0.1/16".parse().unwrap(), "fd00:1::1/64".parse().unwrap());
        assert_eq!(six.paired(Ipv4Addr::new(172, 17, 0, 2), net).to_string(), "fd00:1::2");
        assert_eq!(six.paired(Ipv4Addr::new(172, 17, 1, 2), net).to_string(), "fd00:1::102");
        assert_eq!(mac_of(Ipv4Addr::new(172, 17, 0, 2)), [2, 0x42, 172, 17, 0, 2]);
    }
}
