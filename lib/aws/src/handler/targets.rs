//! Where the governor may call: the base address that is accepted at start, and the addresses a name may resolve to.
//!
//! A name is judged by what it resolves to, at each connection, and what was judged is what is connected to: a name that
//! changes its mind finds nothing. Public addresses are open; all others only inside a network that was listed.

use std::error::Error;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;
use std::sync::Arc;

use domain::names::printable;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::task::spawn_blocking;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// A network of IPv6 by the first three groups and the last of its address.
const fn v6(a: u16, b: u16, c: u16, last: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last), prefix)
}

/// IPv4 that is not the public internet (IANA IPv4 Special-Purpose Address Registry, RFC 6890; multicast RFC 5771).
const V4_BLOCKS: [(Ipv4Net, &str); 16] = [
    (v4(0, 0, 0, 0, 8), "unspecified"),
    (v4(10, 0, 0, 0, 8), "private"),
    (v4(100, 64, 0, 0, 10), "shared by a carrier"),
    (v4(127, 0, 0, 0, 8), "loopback"),
    (v4(169, 254, 0, 0, 16), "link-local"),
    (v4(172, 16, 0, 0, 12), "private"),
    (v4(192, 0, 0, 0, 24), "reserved for protocols"),
    (v4(192, 0, 2, 0, 24), "for documentation"),
    (v4(192, 88, 99, 0, 24), "a relay to 6to4"),
    (v4(192, 168, 0, 0, 16), "private"),
    (v4(198, 18, 0, 0, 15), "for benchmarks"),
    (v4(198, 51, 100, 0, 24), "for documentation"),
    (v4(203, 0, 113, 0, 24), "for documentation"),
    (v4(224, 0, 0, 0, 4), "multicast"),
    (v4(255, 255, 255, 255, 32), "broadcast"),
    (v4(240, 0, 0, 0, 4), "reserved"),
];

/// Of IPv6 only this is given out as public (RFC 4291 section 2.5.4, IANA IPv6 Global Unicast allocations).
const V6_PUBLIC: Ipv6Net = v6(0x2000, 0, 0, 0, 3);

/// Blocks of IPv6 that are not public, those outside [`V6_PUBLIC`] for their names only (IANA IPv6 Special-Purpose Address
/// Registry). 6to4 and Teredo hold an IPv4 address that somebody else would be asked to reach.
const V6_BLOCKS: [(Ipv6Net, &str); 12] = [
    (v6(0, 0, 0, 0, 128), "unspecified"),
    (v6(0, 0, 0, 1, 128), "loopback"),
    (v6(0, 0, 0, 0, 96), "IPv4-compatible"),
    (v6(0x64, 0xff9b, 1, 0, 48), "translated to IPv4 by a local rule"),
    (v6(0x2001, 0, 0, 0, 32), "Teredo"),
    (v6(0x2001, 0, 0, 0, 23), "reserved for protocols"),
    (v6(0x2001, 0xdb8, 0, 0, 32), "for documentation"),
    (v6(0x2002, 0, 0, 0, 16), "6to4"),
    (v6(0x3fff, 0, 0, 0, 20), "for documentation"),
    (v6(0xfc00, 0, 0, 0, 7), "private"),
    (v6(0xfe80, 0, 0, 0, 10), "link-local"),
    (v6(0xff00, 0, 0, 0, 8), "multicast"),
];

/// Where NAT64 puts an IPv4 address, in the last 32 bits (RFC 6052).
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 0, 96);

/// Which address is reached in the end: IPv4 that is written as IPv6, mapped or for NAT64, is IPv4.
fn reached(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) if NAT64.contains(&v6) => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::from([a, b, c, d])
        }
        IpAddr::V6(v6) => v6.to_canonical(),
    }
}

/// The block that keeps an address from being public; none for what is public.
fn block(address: IpAddr) -> Option<&'static str> {
    match reached(address) {
        IpAddr::V4(v4) => {
            let mut blocks = V4_BLOCKS.iter();
            blocks.find(|(net, _)| net.contains(&v4)).map(|(_, name)| *name)
        }
        IpAddr::V6(v6) => {
            let mut blocks = V6_BLOCKS.iter();
            let named = blocks.find(|(net, _)| net.contains(&v6)).map(|(_, name)| *name);
            named.or_else(|| (!V6_PUBLIC.contains(&v6)).then_some("reserved"))
        }
    }
}

/// Why a list of networks makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworksError {
    /// Not an address with a prefix length.
    #[error("{0:?} is not a network such as 10.0.0.0/8")]
    Form(String),
    /// Bits are set behind the prefix: one of the two is a slip.
    #[error("{found} is an address in {meant}")]
    HostBits {
        /// As it was given.
        found: IpNet,
        /// The network it lies in.
        meant: IpNet,
    },
    /// IPv4 inside IPv6 is judged as IPv4, so that such a network would never be looked at.
    #[error("{0} holds IPv4 addresses: name the network in IPv4")]
    Embedded(IpNet),
}

/// Networks that may be called besides the public internet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl FromStr for Networks {
    type Err = NetworksError;

    /// Reads networks in CIDR notation, separated by commas; of an empty text none.
    fn from_str(text: &str) -> Result<Self, NetworksError> {
        let parts = text.split(',').map(str::trim);
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let network = |part: &str| {
            let found: IpNet = part
                .parse()
                .map_err(|_| NetworksError::Form(printable(part, 64)))?;
            let meant = found.trunc();
            if found != meant {
                return Err(NetworksError::HostBits { found, meant });
            }
            if reached(found.network()) != found.network() {
                return Err(NetworksError::Embedded(found));
            }
            Ok(found)
        };
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl Networks {
    /// Whether an address lies in a listed network.
    fn list(&self, address: IpAddr) -> bool {
        let reached = reached(address);
        self.0.iter().any(|network| network.contains(&reached))
    }

    /// Why an address may not be called; none when it may.
    fn refuse(&self, address: IpAddr) -> Option<&'static str> {
        block(address).filter(|_| !self.list(address))
    }

    /// Those a name may be reached at, in their order. Where there was at least one and none is left, the name is forbidden.
    fn among(&self, name: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Forbidden> {
        let mut refused = None;
        let mut open = Vec::with_capacity(found.len());
        for address in found {
            match self.refuse(address.ip()) {
                None => open.push(address),
                Some(block) => refused = Some((address.ip(), block)),
            }
        }
        match refused {
            Some((address, block)) if open.is_empty() => Err(Forbidden::Address {
                name: printable(name, 255),
                address,
                block,
            }),
            _ => Ok(open),
        }
    }
}

/// Why a base address is not accepted. None of these repeats the address: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL with a host.
    #[error("it is no URL: {0}")]
    Form(String),
    /// A scheme that is not for handlers, or http to others than this machine.
    #[error(
        "its scheme is {0:?}: expected https, or http with a loopback address that HANDLER_NETWORKS lists"
    )]
    Scheme(String),
    /// A user name or password: calls are signed instead.
    #[error("it holds a user name or a password: calls are signed instead")]
    Credentials,
    /// A query or fragment, behind which no path can be appended.
    #[error("it has a query or a fragment: the policy's paths are appended to it")]
    Tail,
    /// An address that is neither public nor listed.
    #[error("{address} is {block}, and in no network that HANDLER_NETWORKS lists")]
    Address { address: IpAddr, block: &'static str },
}

/// Why a call was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// A name that resolves to nothing that may be called.
    #[error("{name} resolves to {address}, which is {block}, and in no network that HANDLER_NETWORKS lists")]
    Address {
        name: String,
        /// What it resolved to, the last of several.
        address: IpAddr,
        block: &'static str,
    },
    /// A path that would not stay below the base address.
    #[error("{path:?} does not stay below the handler's base address")]
    Path {
        /// As the policy says it.
        path: String,
    },
}

impl Forbidden {
    /// Finds it among the causes of an error.
    pub(super) fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
    }
}

/// Where a handler is, checked, with the networks its name may resolve into.
#[derive(Debug, Clone)]
pub struct Target {
    /// Without a slash at its end.
    base: String,
    networks: Arc<Networks>,
}

impl Target {
    /// Checks a base address.
    ///
    /// # Errors
    /// [`TargetError`] unless it is https, or http with a loopback address that is listed; and for a literal address that
    /// is neither public nor listed.
    pub fn new(base_url: &str, networks: Networks) -> Result<Self, TargetError> {
        let url = Url::parse(base_url).map_err(|e| TargetError::Form(e.to_string()))?;
        let host = url.host_str().unwrap_or_default();
        // The parser has already turned each way to write an address, such as 0x7f.1, into the usual one.
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        let open = match url.scheme() {
            "https" => !host.is_empty(),
            "http" => literal.is_some_and(|address| reached(address).is_loopback()),
            _ => false,
        };
        if !open {
            return Err(TargetError::Scheme(printable(url.scheme(), 16)));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(TargetError::Tail);
        }
        if let Some(address) = literal
            && let Some(block) = networks.refuse(address)
        {
            return Err(TargetError::Address { address, block });
        }
        Ok(Self {
            base: url.as_str().trim_end_matches('/').to_owned(),
            networks: Arc::new(networks),
        })
    }

    /// The address of a path of the policy, which stays below the base: it can't change host, nor climb, nor bring a query.
    pub(super) fn at(&self, path: &str) -> Result<Url, Forbidden> {
        let wanted = format!("{}{path}", self.base);
        let url = Url::parse(&wanted).ok();
        url.filter(|url| path.starts_with('/') && url.as_str() == wanted)
            .filter(|url| url.query().is_none() && url.fragment().is_none())
            .ok_or_else(|| Forbidden::Path {
                path: printable(path, 255),
            })
    }

    /// Resolves names for this target's client.
    pub(super) fn resolver(&self) -> Resolver {
        Resolver(Arc::clone(&self.networks))
    }
}

/// The system's resolver, of whose answers only those that may be called are told.
pub(super) struct Resolver(Arc<Networks>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let networks = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str().to_owned();
            // Port 0 stands for the URL's.
            let asked = spawn_blocking(move || (host.as_str(), 0).to_socket_addrs());
            let found = asked.await??.collect();
            let open = networks.among(name.as_str(), found)?;
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn networks(text: &str) -> Networks {
        text.parse().unwrap()
    }

    /// First and last address of each block, and some within | what is public next to it | what it is.
    const BLOCKS: &str = "
        0.0.0.0 0.255.255.255 | 1.0.0.0 | unspecified
        10.0.0.0 10.255.255.255 | 9.255.255.255 11.0.0.0 | private
        100.64.0.0 100.127.255.255 | 100.63.255.255 100.128.0.0 | shared by a carrier
        127.0.0.0 127.255.255.255 127.0.0.1 | 126.255.255.255 128.0.0.0 | loopback
        169.254.0.0 169.254.255.255 169.254.169.254 | 169.253.255.255 169.255.0.0 | link-local
        172.16.0.0 172.31.255.255 | 172.15.255.255 172.32.0.0 | private
        192.0.0.0 192.0.0.255 192.0.0.192 | 191.255.255.255 192.0.1.0 | reserved for protocols
        192.0.2.0 192.0.2.255 | 192.0.1.255 192.0.3.0 | for documentation
        192.88.99.0 192.88.99.255 | 192.88.98.255 192.88.100.0 | a relay to 6to4
        192.168.0.0 192.168.255.255 | 192.167.255.255 192.169.0.0 | private
        198.18.0.0 198.19.255.255 | 198.17.255.255 198.20.0.0 | for benchmarks
        198.51.100.0 198.51.100.255 | 198.51.99.255 198.51.101.0 | for documentation
        203.0.113.0 203.0.113.255 | 203.0.112.255 203.0.114.0 | for documentation
        224.0.0.0 239.255.255.255 | 223.255.255.255 | multicast
        240.0.0.0 255.255.255.254 | | reserved
        255.255.255.255 | | broadcast
        :: | | unspecified
        ::1 | | loopback
        ::2 ::ffff:ffff ::8.8.8.8 | | IPv4-compatible
        64:ff9b:1:: 64:ff9b:1:ffff:ffff:ffff:ffff:ffff | | translated to IPv4 by a local rule
        2001:: 2001:0:ffff:ffff:ffff:ffff:ffff:ffff | | Teredo
        2001:1:: 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff 2001:2::1 | 2001:200:: | reserved for protocols
        2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff | 2001:db7:ffff:: 2001:db9:: | for documentation
        2002:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2002:7f00:1:: | 2001:ffff:: 2003:: | 6to4
        3fff:: 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff | 3ffe:ffff:: 3fff:1000:: | for documentation
        fc00:: fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fd00:ec2::254 | | private
        fe80:: febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe80::1 | | link-local
        ff00:: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ff02::1 | | multicast
        fec0:: feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff | | reserved
        0:1:: 63:ffff:: 65:: 100:: 1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff | 2000:: | reserved
        4000:: 5f00::1 fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff | 3fff:ffff:: | reserved";

    #[test]
    fn blocks_and_their_edges() {
        for row in BLOCKS.lines().skip(1) {
            let [inside, outside, name] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("{row}");
            };
            for address in inside.split_whitespace() {
                assert_eq!(block(ip(address)), Some(name), "{address}");
            }
            for address in outside.split_whitespace() {
                assert_eq!(block(ip(address)), None, "{address}");
            }
        }
        let named = |name: &&str| BLOCKS.contains(&format!("| {name}\n"));
        let names = V4_BLOCKS.iter().map(|(_, name)| name);
        assert!(names.chain(V6_BLOCKS.iter().map(|(_, name)| name)).all(named));
    }

    #[test]
    fn public_addresses_are_open() {
        for public in [
            "8.8.8.8",
            "100.63.0.1",
            "192.0.1.1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2600:1f18::1",
            "2a05:d018::1",
        ] {
            assert_eq!(block(ip(public)), None, "{public}");
        }
    }

    /// IPv4 as IPv6 writes it: mapped, and for NAT64.
    fn embedded(v4: Ipv4Addr) -> [IpAddr; 2] {
        let nat64 = u128::from(NAT64.addr()) | u128::from(u32::from(v4));
        [v4.to_ipv6_mapped().into(), Ipv6Addr::from(nat64).into()]
    }

    proptest! {
        /// What holds for an IPv4 address holds for it in IPv6 clothes, whatever is listed.
        #[test]
        fn no_other_form_of_an_address_slips_through(bits: u32, net: u32, prefix in 0u8..=32) {
            let v4 = Ipv4Addr::from(bits);
            let listed = Networks(vec![Ipv4Net::new_assert(Ipv4Addr::from(net), prefix).trunc().into()]);
            let v6_only = networks("::/0");
            for form in embedded(v4) {
                prop_assert_eq!(block(form), block(v4.into()));
                prop_assert_eq!(listed.refuse(form), listed.refuse(v4.into()));
                prop_assert_eq!(v6_only.refuse(form), block(v4.into()));
            }
            // These have no public use at all.
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for form in [
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, high, low, 0, 0, !high, !low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
            ] {
                prop_assert!(listed.refuse(form.into()).is_some(), "{}", form);
            }
        }

        /// Listing a network opens it and nothing beside it.
        #[test]
        fn a_listed_network_opens_itself_only(bits: u32, net: u32, prefix in 1u8..=32) {
            let (address, network) = (Ipv4Addr::from(bits), Ipv4Net::new_assert(Ipv4Addr::from(net), prefix).trunc());
            let listed: Networks = network.to_string().parse().unwrap();
            let expected = if network.contains(&address) { None } else { block(address.into()) };
            prop_assert_eq!(listed.refuse(address.into()), expected);
            prop_assert_eq!(listed.refuse(Ipv6Addr::LOCALHOST.into()), Some("loopback"));
        }

        /// No text makes it panic, and no accepted one brings more than a base and its networks.
        #[test]
        fn any_base_is_judged(text in ".{0,40}", scheme in "(https?|ftp)://") {
            for base in [text.clone(), format!("{scheme}{text}")] {
                if let Ok(target) = Target::new(&base, Networks::default()) {
                    prop_assert!(target.base.starts_with("https://"), "{}", target.base);
                }
            }
        }
    }

    #[test]
    fn lists_of_networks() {
        let listed = networks(" 127.0.0.0/8, 10.1.0.0/16,fd00:1::/32 ");
        for open in ["127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "fd00:1::9", "8.8.8.8"] {
            assert_eq!(listed.refuse(ip(open)), None, "{open}");
        }
        for shut in ["10.2.0.1", "::1", "fd00:2::1", "169.254.169.254"] {
            assert!(listed.refuse(ip(shut)).is_some(), "{shut}");
        }
        assert_eq!(networks(" "), Networks::default());
        for (text, says) in [
            ("127.0.0.1", "not a network"),
            ("10.0.0.0/33", "not a network"),
            ("10.0.0.0/8,", "not a network"),
            ("everything", "not a network"),
            ("10.0.0.1/8", "an address in 10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "name the network in IPv4"),
            ("64:ff9b::/96", "name the network in IPv4"),
        ] {
            let error = text.parse::<Networks>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[track_caller]
    fn check(base: &str, listed: &str, expected: Result<&str, &str>) {
        match (Target::new(base, networks(listed)), expected) {
            (Ok(target), Ok(base)) => assert_eq!(target.base, base),
            (Err(error), Err(says)) => {
                let error = error.to_string();
                assert!(error.contains(says), "{base}: {error}");
                assert!(!error.contains("hunter2"), "{error}");
            }
            (got, expected) => panic!("{base}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn bases() {
        let (scheme, address) = ("its scheme is", "in no network");
        check(
            "https://handlers.example.com",
            "",
            Ok("https://handlers.example.com"),
        );
        check(
            "https://handlers.example.com:8443/v1/",
            "",
            Ok("https://handlers.example.com:8443/v1"),
        );
        check(
            "HTTPS://Handlers.Example.com//",
            "",
            Ok("https://handlers.example.com"),
        );
        check("https://8.8.8.8", "", Ok("https://8.8.8.8"));
        check("https://[2600:1f18::1]:9/", "", Ok("https://[2600:1f18::1]:9"));
        check("https://10.0.0.7", "10.0.0.0/8", Ok("https://10.0.0.7"));
        check(
            "http://127.0.0.1:8080/",
            "127.0.0.0/8",
            Ok("http://127.0.0.1:8080"),
        );
        check("http://[::1]:8080/", "::1/128", Ok("http://[::1]:8080"));
        check(
            "http://[::ffff:127.0.0.1]:8080",
            "127.0.0.0/8",
            Ok("http://[::ffff:7f00:1]:8080"),
        );

        check("http://127.0.0.1:8080", "", Err("127.0.0.1 is loopback"));
        check("http://127.0.0.1:8080", "10.0.0.0/8", Err(address));
        check("http://localhost:8080", "127.0.0.0/8", Err(scheme));
        check("http://handlers.example.com", "0.0.0.0/0", Err(scheme));
        check("http://8.8.8.8", "0.0.0.0/0", Err(scheme));
        check("http://10.0.0.7", "10.0.0.0/8", Err(scheme));
        check("ftp://handlers.example.com", "", Err(scheme));
        check("file:///etc/passwd", "", Err(scheme));
        check("unix:/run/handler.sock", "", Err(scheme));
        check("data:,", "", Err(scheme));

        check("https://169.254.169.254/latest", "", Err("is link-local"));
        check("https://0xa9.0xfea9fe", "", Err("is link-local"));
        check("https://2852039166", "", Err("is link-local"));
        check("https://0251.0376.0251.0376", "", Err("is link-local"));
        check("https://169.254.169.254.", "", Err("is link-local"));
        check("https://[fe80::1]", "", Err("is link-local"));
        check("https://[fd00:ec2::254]", "", Err("is private"));
        check("https://[::ffff:169.254.169.254]", "", Err("is link-local"));
        check("https://[64:ff9b::a9fe:a9fe]", "", Err("is link-local"));
        check("https://[::127.0.0.1]", "127.0.0.0/8", Err("is IPv4-compatible"));
        check("https://0", "", Err("is unspecified"));
        check("https://[::]", "", Err("is unspecified"));

        check("https://ann:hunter2@handlers.example.com", "", Err("a password"));
        check("https://hunter2@handlers.example.com", "", Err("a password"));
        check("https://:hunter2@handlers.example.com", "", Err("a password"));
        check("https://handlers.example.com/?token=hunter2", "", Err("a query"));
        check("https://handlers.example.com/?", "", Err("a query"));
        check("https://handlers.example.com#hunter2", "", Err("a query"));
        check("https://", "", Err("no URL"));
        check("handlers.example.com/hunter2", "", Err("no URL"));
        check("https://hunter2 .example.com", "", Err("no URL"));
        check("", "", Err("no URL"));
    }

    #[test]
    fn paths_stay_below_the_base() {
        for base in ["https://h.example", "https://h.example:8443/v1/"] {
            let target = Target::new(base, Networks::default()).unwrap();
            let url = target.at("/actions/restart.service-1_a").unwrap();
            assert_eq!(url.host_str(), Some("h.example"));
            assert!(url.as_str().ends_with("/actions/restart.service-1_a"), "{url}");
            for path in [
                "",
                "x",
                ".evil.example/x",
                "@evil.example/x",
                ":1@evil.example/x",
                "/../x",
                "/a/../../x",
                "/%2e%2e/x",
                "/x?y",
                "/x#y",
                "/a b",
                "\\evil.example",
                "/x\n",
            ] {
                let refused = target.at(path).unwrap_err();
                assert!(matches!(refused, Forbidden::Path { .. }), "{path}: {refused}");
            }
        }
    }

    #[test]
    fn a_name_is_reached_only_where_it_may_be() {
        let found = |all: &[&str]| all.iter().map(|text| SocketAddr::new(ip(text), 0)).collect();
        let none = Networks::default();
        let mixed = found(&["10.0.0.1", "8.8.8.8", "::ffff:127.0.0.1", "2600:1f18::1"]);
        assert_eq!(none.among("h", mixed), Ok(found(&["8.8.8.8", "2600:1f18::1"])));
        let refused = none
            .among("h", found(&["10.0.0.1", "169.254.169.254"]))
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "h resolves to 169.254.169.254, which is link-local, and in no network that HANDLER_NETWORKS lists"
        );
        let inside = found(&["10.0.0.1", "169.254.169.254"]);
        assert_eq!(
            networks("10.0.0.0/8").among("h", inside),
            Ok(found(&["10.0.0.1"]))
        );
        // Nothing found is no offence.
        assert_eq!(none.among("h", Vec::new()), Ok(Vec::new()));
    }
}
