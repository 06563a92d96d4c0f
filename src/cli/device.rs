//! `device`: the devices that come with the program, each number with its source.

use clap::Subcommand;
use serde::Serialize;

use crate::Result;
use crate::cli::{Output, output};
use crate::config::{DType, DeviceSpec};
use crate::report::grid::{Column, grid, hanging};
use crate::units::{BytesPerSecond, FlopsPerSecond};

/// List and show the devices that come with the program.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: moe-frontier device show h100")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with devices.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// One line per device.
    #[command(after_help = "Example: moe-frontier device list --json")]
    List,
    /// Everything about one device.
    #[command(after_help = "Example: moe-frontier device show h100
A device of your own: moe-frontier device show h100 --toml > mine.toml, edit, --device mine.toml")]
    Show {
        /// Name or alias, or a TOML file of the same form.
        name: String,
        /// Print a TOML file to edit, which --device takes.
        #[arg(long)]
        toml: bool,
    },
}

/// The list of `--json`.
#[derive(Debug, Serialize)]
struct List {
    schema: &'static str,
    schema_version: &'static str,
    devices: Vec<DeviceSpec>,
}

/// One device of `--json`.
#[derive(Debug, Serialize)]
struct Shown {
    schema: &'static str,
    schema_version: &'static str,
    device: DeviceSpec,
}

const SCHEMA: &str = "moe-frontier/device";
const SCHEMA_VERSION: &str = "1.0";

/// Runs the command.
///
/// # Errors
/// [`crate::Error::Usage`] for an unknown name, with the nearest ones; [`crate::Error::Io`] and
/// [`crate::Error::BadFile`] for a file.
pub fn run(args: &Args, output: Output) -> Result<()> {
    let (schema, schema_version) = (SCHEMA, SCHEMA_VERSION);
    match &args.action {
        Action::List => {
            let list = List { schema, schema_version, devices: DeviceSpec::known()? };
            output.result(&list, || list_text(&list.devices, output::width()))
        }
        Action::Show { name, toml: true } => {
            let device = DeviceSpec::load(name)?;
            let text = device.to_toml()?;
            output.verbatim(&Shown { schema, schema_version, device }, &text)
        }
        Action::Show { name, toml: false } => {
            let shown = Shown { schema, schema_version, device: DeviceSpec::load(name)? };
            output.result(&shown, || show_text(&shown.device, output::width()))
        }
    }
}

fn list_text(devices: &[DeviceSpec], width: usize) -> String {
    let peak = |d: &DeviceSpec, dtype: DType| {
        d.peak(dtype).map_or_else(|| "-".to_owned(), |v| FlopsPerSecond(v).to_string())
    };
    let rows = devices.iter().map(|d| {
        vec![
            d.name.clone(),
            d.aliases.join(", "),
            gigabytes(d.memory_bytes),
            BytesPerSecond(d.read_bytes_per_s).to_string(),
            peak(d, DType::Bf16),
            peak(d, DType::Fp8),
            d.price().map_or_else(|| "-".to_owned(), |(price, _)| hourly(price.0)),
        ]
    });
    grid(
        &[
            Column::words("device"),
            Column::words("also called").left_out(4),
            Column::numbers("memory"),
            Column::numbers("bandwidth"),
            Column::numbers("dense bf16").left_out(2),
            Column::numbers("dense fp8").left_out(3),
            Column::numbers("price"),
        ],
        &rows.collect::<Vec<_>>(),
        width,
    )
}

fn show_text(device: &DeviceSpec, width: usize) -> String {
    let published = |field: &str, name: &str, value: String| {
        let is_doubtful = device.unverified.iter().any(|u| u == field);
        let seen = if is_doubtful { "unverified" } else { "-" };
        vec![name.to_owned(), value, seen.to_owned(), device.source.clone()]
    };
    let bandwidth = BytesPerSecond(device.read_bytes_per_s).to_string();
    let link = BytesPerSecond(device.link_bytes_per_s).to_string();
    let mut rows = vec![
        published("memory_bytes", "memory", gigabytes(device.memory_bytes)),
        published("read_bytes_per_s", "memory bandwidth", bandwidth),
        published("link_bytes_per_s", "link bandwidth", link),
    ];
    if let Some(watts) = device.watts {
        rows.push(published("watts", "board power", format!("{watts:.0} W")));
    }
    rows.extend(device.flops_per_s.iter().map(|(dtype, rate)| {
        let field = format!("{dtype:?}").to_lowercase();
        published(&field, &format!("dense {field}"), FlopsPerSecond(*rate).to_string())
    }));
    rows.extend(device.prices.iter().map(|price| {
        vec![
            format!("{}, {}", price.kind.label(), price.tier),
            hourly(price.usd_per_hour),
            price.date.clone(),
            price.source.clone(),
        ]
    }));
    let columns = [
        Column::words("quantity"),
        Column::numbers("value"),
        Column::words("seen"),
        Column::words("source"),
    ];
    let table = grid(&columns, &rows, width);
    let default = match device.price() {
        Some((_, price)) => format!("default price: {}", price.tier),
        None => "no price known".to_owned(),
    };
    let head = format!("({}); {default}", device.aliases.join(", "));
    format!("{}\n{table}", hanging(&format!("{} ", device.name), &head, width))
}

/// A price with its cents.
fn hourly(usd: f64) -> String {
    format!("${usd:.2}/h")
}

/// Memory in the unit of datasheets.
fn gigabytes(bytes: f64) -> String {
    format!("{:.0} GB", bytes / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_fits_a_terminal_and_names_every_device() {
        let devices = DeviceSpec::known().unwrap();
        insta::assert_snapshot!(list_text(&devices, 80));
        let text = list_text(&devices, 100);
        assert!(devices.iter().all(|d| text.contains(&d.name)), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }

    #[test]
    fn every_number_of_a_device_has_its_source() {
        for device in DeviceSpec::known().unwrap() {
            let text = show_text(&device, 100);
            let lines = text.lines().skip_while(|l| !l.starts_with("--")).skip(1);
            for line in lines {
                // A long source goes on below its number.
                let sourced = line.starts_with(' ')
                    || line.contains("datasheet")
                    || line.contains("price table");
                assert!(sourced && line.chars().count() <= 100, "{line}");
            }
        }
        let h100 = show_text(&DeviceSpec::load("h100").unwrap(), 100);
        assert!(h100.contains("80 GB") && h100.contains("3.35 TB/s") && h100.contains("$1.69/h"));
    }

    #[test]
    fn an_unknown_device_is_a_usage_error_with_suggestions() {
        let args = Args { action: Action::Show { name: "h10".into(), toml: false } };
        let error = run(&args, Output::new(true)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("h100"), "{error}");
    }
}
