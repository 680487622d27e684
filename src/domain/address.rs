//! Client addresses and the CIDR blocks that a key may be used from (RFC 4632, RFC 4291).
//! An IPv4 address written inside IPv6 (`::ffff:10.0.0.1`) counts as the IPv4 address that it is.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Invalid;

/// Reads a client's address, without port or zone.
///
/// # Errors
/// Refuses anything that is not an IPv4 or IPv6 address.
pub fn parse_address(text: &str) -> Result<IpAddr, Invalid> {
    let address: IpAddr = text.parse().map_err(|_| Invalid::new("must be an IPv4 or IPv6 address"))?;
    Ok(address.to_canonical())
}

/// Reads a block such as `10.0.0.0/8`, or a single address. Host bits are cleared.
///
/// # Errors
/// Refuses anything else, prefix lengths over the address's width included.
pub fn parse_cidr(text: &str) -> Result<IpNet, Invalid> {
    let refused = || Invalid::new("must be a CIDR block such as 10.0.0.0/8 or 2001:db8::/32");
    let block = match text.parse::<IpNet>() {
        Ok(block) => block,
        Err(_) => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| refused())?,
    };
    Ok(block.trunc())
}

/// Whether `address` may use a key with these blocks. No block means that any address may, a known one or not.
#[must_use]
pub fn is_allowed(allowed: &[IpNet], address: Option<IpAddr>) -> bool {
    allowed.is_empty() || address.is_some_and(|address| allowed.iter().any(|block| block.contains(&address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_contain_what_they_say() {
        let blocks = [parse_cidr("10.1.2.3/8").unwrap(), parse_cidr("2001:db8::/32").unwrap()];
        let allowed = |text: &str| is_allowed(&blocks, Some(parse_address(text).unwrap()));
        assert!(allowed("10.255.0.1") && allowed("::ffff:10.0.0.1") && allowed("2001:db8::1"));
        assert!(!allowed("11.0.0.1") && !allowed("2001:db9::1"));
        assert!(!is_allowed(&blocks, None), "an unknown address is not inside any block");
        assert!(is_allowed(&[], None));
    }

    #[test]
    fn malformed_blocks_and_addresses_are_refused() {
        for text in ["", "10.0.0.1/33", "10.0.0/8", "::/129", "10.0.0.1/-1", "any", "10.0.0.1 "] {
            assert!(parse_cidr(text).is_err(), "{text:?}");
        }
        for text in ["", "localhost", "10.0.0.1:80", "10.0.0.0/8"] {
            assert!(parse_address(text).is_err(), "{text:?}");
        }
    }
}
