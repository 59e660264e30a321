//! The slots of Redis Cluster.

use crc::{CRC_16_XMODEM, Crc};

const CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The slot of a key, 0 to 16383: of what stands in the first pair of braces if that is not empty, else of the whole key
/// (Redis Cluster Specification, "Hash tags").
pub fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open.saturating_add(1)..)?;
        let end = rest.iter().position(|byte| *byte == b'}')?;
        rest.get(..end).filter(|tag| !tag.is_empty())
    });
    CRC16.checksum(tag.unwrap_or(key)) & 0x3fff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        // CLUSTER KEYSLOT of a server says the same.
        for (key, expected) in
            [("123456789", 0x31c3), ("foo", 12182), ("{foo}bar", 12182), ("a{foo}{bar}", 12182), ("", 0)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(slot(b"foo{}{bar}"), CRC16.checksum(b"foo{}{bar}") & 0x3fff, "an empty tag is none");
        assert_eq!(slot(b"foo{bar"), CRC16.checksum(b"foo{bar") & 0x3fff);
    }
}
