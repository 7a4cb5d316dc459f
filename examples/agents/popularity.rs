//! Which agent a turn is for: few are asked often, most now and then, by Zipf's law.
//! Knows numbers of agents and nothing else.

use rand::Rng;
use rand::rngs::SmallRng;

/// The sums of the weights 1, 1/2, 1/3, ... up to each agent's.
pub(crate) struct Popularity(Vec<f64>);

impl Popularity {
    pub(crate) fn new(agents: u64) -> Self {
        let weights = (1..=agents).map(|rank| 1.0 / rank as f64);
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Popularity(sums.collect())
    }

    /// From 1, the most popular, up.
    pub(crate) fn draw(&self, rng: &mut SmallRng) -> usize {
        let all = self.0.last().copied().unwrap_or(0.0);
        let drawn = rng.random::<f64>() * all;
        self.0.partition_point(|sum| *sum <= drawn) + 1
    }
}
