//! Numbers in no more bytes than they need. A server may hold millions of limiters, and its allocator gives memory in steps of
//! 16 bytes.

/// A number from 0 to what `N` bytes can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed<const N: usize>([u8; N]);

impl<const N: usize> Packed<N> {
    /// That the number fits is an invariant of whoever packs it: of one that does not, the upper bytes are lost.
    pub fn new(number: impl Into<i128>) -> Packed<N> {
        let mut bytes = [0; N];
        bytes.iter_mut().zip(number.into().to_le_bytes()).for_each(|(packed, byte)| *packed = byte);
        Packed(bytes)
    }

    pub fn wide(self) -> i128 {
        let mut bytes = [0; size_of::<i128>()];
        bytes.iter_mut().zip(self.0).for_each(|(byte, packed)| *byte = packed);
        i128::from_le_bytes(bytes)
    }

    /// For numbers that fit into an `i64`.
    pub fn get(self) -> i64 {
        self.wide() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratelimit::MAX_UNITS;

    #[test]
    fn what_fits_comes_back() {
        for number in [0, 1, 255, 256, MAX_UNITS, (1 << 40) - 1] {
            assert_eq!(Packed::<5>::new(number).get(), number);
        }
        assert_eq!(Packed::<8>::new(i64::MAX).get(), i64::MAX);
        for number in [0, i128::from(MAX_UNITS) * i128::from(MAX_UNITS * 1000), (1 << 96) - 1] {
            assert_eq!(Packed::<12>::new(number).wide(), number);
        }
    }
}
