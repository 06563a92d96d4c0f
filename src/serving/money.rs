//! From hours to dollars. Utilisation and basis are always named by the caller.

use crate::units::{
    Flops, FlopsPerSecond, Seconds, TokensPerSecond, Usd, UsdPerHour, UsdPerMillionTokens,
};

/// What training is paid for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingPrice {
    /// Peak dense rate of one training device.
    pub peak: FlopsPerSecond,
    /// Share of that peak that training reaches (model FLOPs utilisation).
    pub mfu: f64,
    /// Price of one training device.
    pub price: UsdPerHour,
    /// Restarts and trials on top, as a share of the run.
    pub overhead: f64,
}

impl TrainingPrice {
    /// Device time of a run.
    pub fn device_time(&self, work: Flops) -> Seconds {
        work / FlopsPerSecond(self.peak.0 * self.mfu)
    }

    /// Price of a run: device hours times price, overhead included.
    ///
    /// ```
    /// use moe_frontier::serving::TrainingPrice;
    /// use moe_frontier::units::{Flops, FlopsPerSecond, UsdPerHour};
    /// let price = TrainingPrice { peak: FlopsPerSecond(1e15), mfu: 0.5, price: UsdPerHour(2.0), overhead: 0.0 };
    /// assert_eq!(price.cost(Flops(3600.0 * 5e14)).to_string(), "$2.00");
    /// ```
    pub fn cost(&self, work: Flops) -> Usd {
        self.price * self.device_time(work) * (1.0 + self.overhead)
    }
}

/// Training work of a model: 6 FLOPs per active parameter and token.
pub fn training_flops(active_params: f64, tokens: f64) -> Flops {
    Flops(6.0 * active_params * tokens)
}

/// Serving price with all dollars put on output tokens: `devices` paid for while `rate` flows.
pub fn usd_per_million_output(
    devices: f64,
    price: UsdPerHour,
    rate: TokensPerSecond,
) -> UsdPerMillionTokens {
    let hour = Seconds(3600.0);
    (price * hour) * devices / (rate * hour)
}

/// Serving price split by what the devices' time goes to: dollars per million prompt tokens and per
/// million output tokens. `prompt_share` is the share of the time that prompts take.
///
/// `input x first + output x second` is what one request costs, whatever the share.
///
/// ```
/// use moe_frontier::serving::usd_per_million_split;
/// use moe_frontier::units::UsdPerHour;
/// // One device at $3.60/h, one request per second of 100 prompt and 50 output tokens.
/// let (input, output) = usd_per_million_split(1.0, UsdPerHour(3.6), 1.0, 100.0, 50.0, 0.25);
/// assert!((100.0 * input.0 + 50.0 * output.0 - 1000.0).abs() < 1e-9);
/// ```
pub fn usd_per_million_split(
    devices: f64,
    price: UsdPerHour,
    requests_per_s: f64,
    input: f64,
    output: f64,
    prompt_share: f64,
) -> (UsdPerMillionTokens, UsdPerMillionTokens) {
    let per_request = (price * Seconds(1.0)) * devices / requests_per_s;
    let per_million = |share: f64, tokens: f64| {
        UsdPerMillionTokens(if tokens > 0.0 { per_request.0 * share / tokens * 1e6 } else { 0.0 })
    };
    (per_million(prompt_share, input), per_million(1.0 - prompt_share, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deepseek_v3_training_costs_what_its_report_says() {
        // Technical report, arXiv 2412.19437, table 1: 2.788 million H800 hours at $2 are $5.576M.
        let price = TrainingPrice {
            peak: FlopsPerSecond(1.0),
            mfu: 1.0,
            price: UsdPerHour(2.0),
            overhead: 0.0,
        };
        let cost = price.cost(Flops(2.788e6 * 3600.0));
        assert!((cost.0 - 5.576e6).abs() < 1.0, "{cost}");
    }

    #[test]
    fn deepseek_day_costs_87072_dollars() {
        // Published for one day of serving: 226.75 nodes of 8 devices at $2 an hour.
        let day = UsdPerHour(2.0) * Seconds(86_400.0) * (226.75 * 8.0);
        assert!((day.0 - 87_072.0).abs() < 1e-6, "{day}");
    }

    #[test]
    fn a_device_at_one_token_per_second_costs_its_hour_over_3600_tokens() {
        let cost = usd_per_million_output(1.0, UsdPerHour(3.6), TokensPerSecond(1.0));
        assert!((cost.0 - 1000.0).abs() < 1e-9);
    }
}
