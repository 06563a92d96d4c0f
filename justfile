# Daily recipes. Nothing here is needed to build, test or run the program: cargo alone does that.

[private]
default:
    @just --list --unsorted

# Rewrite all sources in the project's format
[group('dev')]
fmt:
    cargo fmt --all

# Type-check everything, the fastest answer while editing
[group('dev')]
check:
    cargo check --all-targets

# Clippy with warnings denied
[group('check')]
lint:
    cargo clippy --all-targets -- -D warnings

# Build the documentation with warnings denied; `just doc --open` shows it
[group('check')]
doc *flags:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps {{ flags }}

# Run the tests; `just test --lib law::` runs some
[group('check')]
test *flags:
    cargo test {{ flags }}

# The page of a ranking in a real browser: `just page out`
[group('check')]
page folder='out':
    bash .ci/page {{ folder }}

# Make the module that pages compute with, which is checked in
[group('report')]
page-module:
    bash .ci/page-module

# The whole gate, as it runs before a change is taken
[group('check')]
ci:
    bash .ci/run

# Execute every path of the CPU kernels that can run here; `just cpu-paths aarch64` runs one of x86, asan, aarch64
[group('check')]
cpu-paths *parts:
    bash .ci/cpu-paths {{ parts }}

# Run a bench: router, grouped_gemm, moe_layer, cuda, law or cost_model; all without a name
[group('bench')]
bench name='':
    cargo bench {{ if name == '' { '--benches' } else { '--bench ' + name } }}

# The CPU layer in turns with those of other programs, which it installs; `just cpu-peers --quick`
[group('bench')]
cpu-peers *flags:
    bash reports/peers/cpu.sh {{ flags }}

# Compile the CUDA kernels into kernels/prebuilt, which is checked in
[group('kernels')]
cubins:
    python3 kernels/cubins.py

# Compile them and compare with kernels/prebuilt, byte for byte
[group('kernels')]
cubins-check:
    python3 kernels/cubins.py --check

# Run the CUDA kernels in the host emulator; `just emulator router` runs some
[group('kernels')]
emulator *flags:
    cargo test --test emulator -- {{ flags }}

# Whether the feature candle-cuda compiles, without a GPU; `just candle-cuda --stub` without candle's kernels
[group('kernels')]
candle-cuda *flags:
    bash .ci/candle-cuda {{ flags }}

# Everything that a machine with only a CUDA driver needs, into target/gpu-bundle
[group('kernels')]
gpu-bundle:
    python3 kernels/bundle/build.py

# Try the scripts of the bundle without a GPU, on ten times the clock
[group('kernels')]
gpu-dry-run program='target/release/moe-frontier':
    bash .ci/bundle {{ program }}

# Measure this machine and keep the profile; `just profile --experts 8 --quick`
[group('bench')]
profile *flags:
    cargo run --release -- measure {{ flags }}

# The main job: rank expert counts into out/; `just rank --profile h100 --train-flops 1e22`
[group('report')]
rank *flags:
    cargo run --release -- rank {{ flags }}

# Draw the plots and the page of a ranking again
[group('report')]
report ranking='out/rank.json' *flags:
    cargo run --release -- report {{ ranking }} {{ flags }}

# P(best) against made-up truths: reports/calibration_of_rank
[group('report')]
calibration-of-rank:
    cargo test --release --test rank_calibration -- --ignored

# The compact tables of five devices that the program embeds, from the Parquet files of DATA
[group('report')]
tables data=env('MOE_FRONTIER_DATA', '../shared/data'):
    cargo run --release -- import aiconfigurator {{ data }}/engine_tables --pack src/latency/tables/shipped --overwrite --commit 095f58a51c4ca8e61b66ec108d86f223f8d559ce --date 2026-08-21

# The prior of engine constants that the program embeds, from the open server rows in reports/points
[group('report')]
calibrate:
    cargo run --release -- calibrate --prior reports/points/published_rows.csv reports/points/silicon_rows.csv --out src/calibrate/prior.json --overwrite

# Compare predictions with the open server rows, whole groups held out: reports/accuracy.md
[group('report')]
accuracy *flags:
    cargo run --release -- accuracy --points reports/points/published_rows.csv reports/points/silicon_rows.csv --overwrite {{ flags }}

# The same with the errors of kernel tables against their own cells, from the Parquet files of DATA
[group('report')]
accuracy-tables data=env('MOE_FRONTIER_DATA', '../shared/data'):
    cargo run --release -- import aiconfigurator {{ data }}/engine_tables/h100_sxm {{ data }}/engine_tables/h200_sxm --out target/tables.mft --overwrite
    just accuracy --tables target/tables.h100_sxm.mft --carried-to target/tables.h200_sxm.mft
