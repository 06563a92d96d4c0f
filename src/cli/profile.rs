//! `--profile A[,B...]`: where latencies come from, the same for every command.

use clap::Args;

use crate::ask::SourceOptions;

/// Flags that every command with latencies has.
#[derive(Debug, Clone, Default, Args)]
pub struct ProfileArgs {
    /// Latencies, asked in the given order: a profile that `measure` wrote, a file that `import`
    /// wrote, a device with shipped tables (h100), or roofline:DEVICE [default: the device's shipped
    /// tables].
    #[arg(
        long,
        value_name = "SOURCE[,SOURCE...]",
        value_delimiter = ',',
        help_heading = "Measurements"
    )]
    pub profile: Vec<String>,
    /// Engine whose kernels and constants are used: vllm, sglang or trtllm; none prices this
    /// program's own kernels without a server [default: vllm; none with a profile of this program].
    #[arg(long, value_name = "ENGINE", help_heading = "Measurements")]
    pub engine: Option<String>,
    /// Use cells of a profile whose interval stayed wide.
    #[arg(long, help_heading = "Measurements")]
    pub include_noisy: bool,
}

impl ProfileArgs {
    /// What these flags ask for.
    pub fn options(&self) -> SourceOptions {
        SourceOptions {
            profile: self.profile.clone(),
            own: Vec::new(),
            engine: self.engine.clone(),
            include_noisy: self.include_noisy,
        }
    }
}
