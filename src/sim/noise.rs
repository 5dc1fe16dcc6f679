//! Numbers that look random but are a pure function of the seed and of what they are used for.
//!
//! Not a generator: there is no state, so any message can be computed without computing those before it.

/// A well mixed 64-bit value from which further independent ones are derived.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noise(u64);

/// The finaliser of the SplitMix64 generator: every input bit changes about half of the output bits.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Noise {
    pub(super) const fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)))
    }

    /// Derives an independent value for the part numbered `part`.
    pub(super) const fn with(self, part: u64) -> Self {
        Self(mix(self.0.wrapping_add(part.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    /// The same for a text, for example a query string.
    pub(super) fn with_text(self, text: &str) -> Self {
        text.as_bytes().chunks(8).fold(self.with(text.len() as u64), |noise, chunk| {
            let mut word = [0_u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            noise.with(u64::from_le_bytes(word))
        })
    }

    pub(super) const fn value(self) -> u64 {
        self.0
    }

    /// A value in `0..bound`; 0 when the bound is 0.
    pub(super) const fn below(self, bound: u64) -> u64 {
        ((self.0 as u128 * bound as u128) >> 64) as u64
    }

    /// A value in `low..=high`.
    pub(super) const fn between(self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(super) const fn one_in(self, rarity: u64) -> bool {
        self.below(rarity) == 0
    }

    /// One of the choices, which must not be empty.
    pub(super) fn pick<'a, T: ?Sized>(self, choices: &[&'a T]) -> &'a T {
        choices[self.index_below(choices.len())]
    }

    pub(super) fn index_below(self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("a value below a usize is a usize")
    }
}
