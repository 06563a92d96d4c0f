//! Training runs to fit: one row a loss, from a CSV file whose columns are mapped by name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::downstream::RESPONSE;
use super::formula::Formula;
use crate::files::checks::check_columns;
use crate::files::read_capped;
use crate::law::{Inputs, Variable};
use crate::{Error, Result};

/// What most forms are fitted to.
const LOSS: &str = "loss";
/// Most rows that are read; no published set comes near.
const MOST_ROWS: usize = 1_000_000;
/// Longest file that is read, as it lies and unpacked.
const CAP: u64 = 256 << 20;

/// One loss of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    values: Inputs,
    logarithms: [f64; Variable::ALL.len()],
    /// ln of the loss in nats per token.
    pub ln_loss: f64,
    /// Rows of one run share its group; resampling takes whole groups.
    pub group: usize,
    /// Line in the file, from 1.
    pub line: usize,
}

impl Run {
    /// A run; `values` hold what the form needs.
    pub fn new(values: Inputs, loss: f64, group: usize, line: usize) -> Self {
        let logarithms = Variable::ALL.map(|v| values.get(v).map_or(f64::NAN, f64::ln));
        Self { values, logarithms, ln_loss: loss.ln(), group, line }
    }

    /// What the row says, as something that can be compared.
    fn bits(&self) -> [u64; Variable::ALL.len() + 1] {
        let mut bits = [0; Variable::ALL.len() + 1];
        for (bit, number) in bits.iter_mut().zip(self.logarithms.iter().chain([&self.ln_loss])) {
            *bit = number.to_bits();
        }
        bits
    }

    /// A value that the form needs.
    pub fn value(&self, variable: Variable) -> f64 {
        self.values.get(variable).unwrap_or(f64::NAN)
    }

    /// Its natural logarithm.
    pub fn ln(&self, variable: Variable) -> f64 {
        self.logarithms[variable as usize]
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// A column, times a factor.
    Column {
        /// Its name.
        name: String,
        /// The factor.
        factor: f64,
    },
    /// One number for all rows.
    Constant(f64),
    /// A formula over columns, unless a column has that very name.
    Formula(String, Formula),
}

/// A name (`loss`, or a variable such as `n_active`) and where its value comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapping {
    /// The name.
    pub name: String,
    /// The origin.
    pub origin: Origin,
}

impl std::str::FromStr for Mapping {
    type Err = String;

    /// `n_active=dense_parameter_count`, `tokens=step*524288`, `tokens=131.072e9`,
    /// `tokens=C/(6*N)`.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!(
                "`{text}` is no mapping; write name=column, name=number or a formula such as tokens=C/(6*N)"
            )
        };
        let (name, from) = text.split_once('=').ok_or_else(form)?;
        let known = Variable::ALL.iter().any(|v| v.name() == name) || name == RESPONSE;
        if !known {
            let names: Vec<String> = Variable::ALL.iter().map(|v| v.name()).collect();
            let names = names.join(", ");
            return Err(format!("`{name}` is no variable; there are {names}, {RESPONSE}"));
        }
        let origin = origin(from).ok_or_else(form)?;
        Ok(Self { name: name.into(), origin })
    }
}

/// A number, a column with a factor, a formula, or a column by its plain name.
fn origin(from: &str) -> Option<Origin> {
    if let Ok(number) = from.parse::<f64>() {
        return Some(Origin::Constant(number));
    }
    if let Some((column, factor)) = from.split_once('*')
        && let Ok(factor) = factor.parse()
    {
        return Some(Origin::Column { name: column.into(), factor });
    }
    match Formula::parse(from) {
        Some(formula @ Formula::Binary(..)) => Some(Origin::Formula(from.into(), formula)),
        // Signs of a formula that is none.
        None if from.contains(['*', '(', '^']) => None,
        _ if from.is_empty() => None,
        _ => Some(Origin::Column { name: from.into(), factor: 1.0 }),
    }
}

/// A condition on a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    column: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    OneOf(Vec<String>),
    AtLeast(f64),
    AtMost(f64),
}

impl std::str::FromStr for Filter {
    type Err = String;

    /// `router_type=Dense,S-Base`, `step>=30000`, `num_experts<=512`.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` is no condition; write column=a,b, column>=1 or column<=1");
        let number = |value: &str| value.parse::<f64>().map_err(|_| form());
        let (column, test) = if let Some((column, value)) = text.split_once(">=") {
            (column, Test::AtLeast(number(value)?))
        } else if let Some((column, value)) = text.split_once("<=") {
            (column, Test::AtMost(number(value)?))
        } else {
            let (column, values) = text.split_once('=').ok_or_else(form)?;
            (column, Test::OneOf(values.split(',').map(str::to_owned).collect()))
        };
        if column.is_empty() { Err(form()) } else { Ok(Self { column: column.into(), test }) }
    }
}

impl Filter {
    /// Whether a cell passes; numbers compare as numbers, so that `1` is `1.0`.
    fn passes(&self, cell: &str) -> bool {
        let number = cell.parse::<f64>().ok();
        let equal = |wanted: &String| {
            wanted == cell
                || number.zip(wanted.parse::<f64>().ok()).is_some_and(|(a, b)| (a - b).abs() == 0.0)
        };
        match &self.test {
            Test::OneOf(values) => values.iter().any(equal),
            Test::AtLeast(least) => number.is_some_and(|n| n >= *least),
            Test::AtMost(most) => number.is_some_and(|n| n <= *most),
        }
    }
}

/// How to read a file of runs.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Name of what is fitted: the loss, unless a form predicts something else.
    pub response: &'static str,
    /// Names whose column is called differently.
    pub mappings: Vec<Mapping>,
    /// Conditions that a row must meet.
    pub filters: Vec<Filter>,
    /// Column that names the run of a row; each row is a run of its own without it.
    pub run_column: Option<String>,
    /// Leave rows with an empty cell out instead of refusing the file.
    pub skip_empty: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            response: LOSS,
            mappings: Vec::new(),
            filters: Vec::new(),
            run_column: None,
            skip_empty: false,
        }
    }
}

/// The runs of a file, and how many rows were left out for an empty cell.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The runs.
    pub runs: Vec<Run>,
    /// Rows left out.
    pub empty: usize,
    /// Lines of rows that say what an earlier line says, each with that line.
    pub repeated: Vec<(usize, usize)>,
}

/// A column by position with its factor, or a constant.
type Source = (Variable, Located);

#[derive(Clone)]
enum Located {
    At(usize, f64),
    Constant(f64),
    /// A formula with the places of its columns.
    Formula(Formula, Vec<(String, usize)>),
}

impl Located {
    /// The columns whose cells it needs.
    fn cells(&self) -> Vec<usize> {
        match self {
            Self::At(column, _) => vec![*column],
            Self::Constant(_) => Vec::new(),
            Self::Formula(_, places) => places.iter().map(|(_, column)| *column).collect(),
        }
    }
}

impl Reading {
    /// Reads the values of `variables` and the loss from a CSV file, gzip-compressed or not.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::BadFile`] with line and column for a missing
    /// column, an empty cell, and a value that is no number or out of its range.
    pub fn read(&self, path: &Path, variables: &[Variable]) -> Result<Runs> {
        let bytes = read_capped(path, CAP)?;
        if !bytes.starts_with(&[0x1f, 0x8b]) {
            return self.parse(bytes.as_slice(), path, variables);
        }
        // Unpacked row by row: what is kept of a row is small, but a row may be packed a thousandfold.
        let mut unpacked = MultiGzDecoder::new(bytes.as_slice()).take(CAP + 1);
        let runs = self.parse(&mut unpacked, path, variables)?;
        if unpacked.limit() == 0 {
            return Err(Error::bad_file(path, format!("longer than {} MiB unpacked", CAP >> 20)));
        }
        Ok(runs)
    }

    fn parse(&self, input: impl Read, path: &Path, variables: &[Variable]) -> Result<Runs> {
        let mut csv = csv::Reader::from_reader(input);
        let bad = |e: csv::Error| csv_error(path, e);
        let header = csv.headers().map_err(bad)?.clone();
        check_columns(path, &header)?;
        let find = |name: &str| {
            header.iter().position(|h| h.trim() == name).ok_or_else(|| {
                Error::bad_file_at(path, 1, 1, format!("no column `{name}`; map it with --column"))
            })
        };
        let locate = |name: &str| match self.mappings.iter().find(|m| m.name == name) {
            None => Ok(Located::At(find(name)?, 1.0)),
            Some(Mapping { origin: Origin::Constant(c), .. }) => Ok(Located::Constant(*c)),
            Some(Mapping { origin: Origin::Column { name, factor }, .. }) => {
                Ok(Located::At(find(name)?, *factor))
            }
            Some(Mapping { origin: Origin::Formula(text, formula), .. }) => {
                if let Ok(column) = find(text) {
                    return Ok(Located::At(column, 1.0));
                }
                let places = formula.columns().into_iter();
                let places = places.map(|name| Ok((name.to_owned(), find(name)?)));
                Ok(Located::Formula(formula.clone(), places.collect::<Result<_>>()?))
            }
        };
        let sources: Vec<Source> =
            variables.iter().map(|&v| Ok((v, locate(&v.name())?))).collect::<Result<_>>()?;
        let loss = locate(self.response)?;
        let filters: Vec<(usize, &Filter)> =
            self.filters.iter().map(|f| Ok((find(&f.column)?, f))).collect::<Result<_>>()?;
        let run_column = self.run_column.as_deref().map(find).transpose()?;
        let (mut runs, mut empty) = (Vec::new(), 0);
        let (mut groups, mut seen) = (HashMap::<String, usize>::new(), HashMap::new());
        let mut repeated = Vec::new();
        for record in csv.records() {
            let record = record.map_err(bad)?;
            let cell = |i: usize| record.get(i).unwrap_or("").trim();
            if !filters.iter().all(|(i, filter)| filter.passes(cell(*i))) {
                continue;
            }
            let needed = sources.iter().map(|(_, l)| l).chain([&loss]);
            let lacks = |l: &Located| l.cells().into_iter().any(|i| cell(i).is_empty());
            if self.skip_empty && needed.into_iter().any(lacks) {
                empty += 1;
                continue;
            }
            let line = record.position().map_or(0, csv::Position::line);
            let line = usize::try_from(line).unwrap_or(usize::MAX);
            let group = match run_column {
                None => runs.len(),
                Some(i) => group_of(&mut groups, cell(i)),
            };
            let number = |l: &Located| number(l, cell, (path, line), &header);
            let values = sources
                .iter()
                .map(|(variable, located)| Ok((*variable, number(located)?)))
                .collect::<Result<Vec<_>>>()?;
            let values = Inputs::new(values)
                .map_err(|e| Error::bad_file_at(path, line, 1, e.to_string()))?;
            let loss = number(&loss)?;
            if loss <= 0.0 {
                let name = if self.response == LOSS { "a loss" } else { "an error" };
                let reason = format!("{name} of {loss} is not above zero");
                return Err(Error::bad_file_at(path, line, 1, reason));
            }
            let run = Run::new(values, loss, group, line);
            match seen.entry(run.bits()) {
                Entry::Occupied(first) => repeated.push((line, *first.get())),
                Entry::Vacant(place) => drop(place.insert(line)),
            }
            runs.push(run);
            if runs.len() > MOST_ROWS {
                return Err(Error::bad_file(path, format!("more than {MOST_ROWS} rows")));
            }
        }
        Ok(Runs { runs, empty, repeated })
    }
}

fn group_of(groups: &mut HashMap<String, usize>, name: &str) -> usize {
    let next = groups.len();
    groups.get(name).copied().unwrap_or_else(|| {
        groups.insert(name.to_owned(), next);
        next
    })
}

fn number<'a>(
    located: &Located,
    cell: impl Fn(usize) -> &'a str,
    (path, line): (&Path, usize),
    header: &csv::StringRecord,
) -> Result<f64> {
    let of = |column: usize| cell_number(cell(column), column, (path, line), header);
    match located {
        Located::Constant(value) => Ok(*value),
        Located::At(column, factor) => of(*column).map(|value| value * factor),
        Located::Formula(formula, places) => {
            let value = formula.value(&|name: &str| {
                let place = places.iter().find(|(known, _)| known == name);
                place.map_or(Ok(f64::NAN), |(_, column)| of(*column))
            })?;
            if value.is_finite() {
                return Ok(value);
            }
            let column = places.first().map_or(1, |(_, column)| column + 1);
            Err(Error::bad_file_at(path, line, column, format!("the formula gives {value}")))
        }
    }
}

/// The number in a cell.
fn cell_number(
    text: &str,
    column: usize,
    (path, line): (&Path, usize),
    header: &csv::StringRecord,
) -> Result<f64> {
    let name = header.get(column).unwrap_or("");
    let refuse = |what: String| Err(Error::bad_file_at(path, line, column + 1, what));
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ if text.is_empty() => {
            refuse(format!("`{name}` is empty; --skip-empty leaves such rows out"))
        }
        _ => refuse(format!("`{name}` holds `{text}`, not a finite number")),
    }
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(0, csv::Position::line);
    match error.into_kind() {
        // What the bytes unpack to, not the reading of them: those are in memory.
        csv::ErrorKind::Io(e) => Error::bad_file(path, format!("cannot be unpacked: {e}")),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let line = usize::try_from(line).unwrap_or(usize::MAX);
            Error::bad_file_at(path, line, 1, format!("{len} fields instead of {expected_len}"))
        }
        _ => Error::bad_file(path, format!("line {line} is not valid CSV in UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const VARIABLES: [Variable; 2] = [Variable::NActive, Variable::Tokens];

    fn read(text: &str, reading: &Reading) -> Result<Runs> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        reading.read(file.path(), &VARIABLES)
    }

    fn reading(mappings: &[&str], filters: &[&str]) -> Reading {
        Reading {
            mappings: mappings.iter().map(|m| m.parse().unwrap()).collect(),
            filters: filters.iter().map(|f| f.parse().unwrap()).collect(),
            ..Reading::default()
        }
    }

    #[test]
    fn columns_are_mapped_scaled_set_and_filtered() {
        let text = "size,step,router,loss\n1e8,10,Dense,3\n2e8,20,Hash,2.9\n3e8,30,Dense,2.8\n";
        let by = reading(&["n_active=size", "tokens=step*1000"], &["router=Dense", "step>=20"]);
        let runs = read(text, &by).unwrap().runs;
        assert_eq!(runs.len(), 1);
        assert!((runs[0].value(Variable::Tokens) - 30_000.0).abs() < 1e-9);
        assert!((runs[0].ln_loss - 2.8_f64.ln()).abs() < 1e-15);
        assert_eq!(runs[0].line, 4);
        let by = reading(&["n_active=size", "tokens=5e9"], &["step<=10.0"]);
        assert!((read(text, &by).unwrap().runs[0].value(Variable::Tokens) - 5e9).abs() < 1e-3);
    }

    #[test]
    fn columns_are_derived_by_formulas() {
        let text = "N,C,loss\n1e9,1.2e21,2.5\n";
        let by = reading(&["n_active=N", "tokens=C/(6*N)"], &[]);
        let runs = read(text, &by).unwrap().runs;
        assert!((runs[0].value(Variable::Tokens) / 2e11 - 1.0).abs() < 1e-12);
        let missing = read(text, &reading(&["n_active=N", "tokens=F/(6*N)"], &[])).unwrap_err();
        assert!(missing.to_string().contains("`F`"), "{missing}");
        let zero = read("N,C,loss\n0,1,2\n", &reading(&["n_active=C", "tokens=C/N"], &[]));
        assert!(zero.unwrap_err().to_string().contains("formula"));
        assert!("tokens=C/(6*".parse::<Mapping>().is_err());
    }

    #[test]
    fn compressed_files_are_read_alike() {
        let text = "n_active,tokens,loss\n1e8,1e9,3\n";
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        file.write_all(&gzip.finish().unwrap()).unwrap();
        let reading = Reading::default();
        let compressed = reading.read(file.path(), &VARIABLES).unwrap().runs;
        assert_eq!(compressed.len(), 1);
        let plain = read(text, &reading).unwrap().runs;
        let (compressed, plain) = (&compressed[0], &plain[0]);
        for variable in VARIABLES {
            assert_eq!(compressed.value(variable).to_bits(), plain.value(variable).to_bits());
        }
        assert_eq!(compressed.ln_loss.to_bits(), plain.ln_loss.to_bits());
    }

    #[test]
    fn errors_name_line_and_column() {
        let cases = [
            ("n_active,tokens\n1e8,1e9\n", ":1:1: no column `loss`"),
            ("n_active,tokens,loss\n1e8,1e9,3\n1e8,x,3\n", ":3:2: `tokens` holds `x`"),
            ("n_active,tokens,loss\n1e8,1e9,\n", ":2:3: `loss` is empty"),
            ("n_active,tokens,loss\n1e8,1e9\n", ":2:1: 2 fields instead of 3"),
            ("n_active,tokens,loss\n-1,1e9,3\n", ":2:1: --n-active: -1"),
            ("n_active,tokens,loss\n1e8,1e9,-3\n", ":2:1: a loss of -3"),
            ("n_active,tokens,loss\n1e8,1e9,NaN\n", ":2:3: `loss` holds `NaN`"),
        ];
        for (text, expected) in cases {
            let error = read(text, &Reading::default()).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(expected), "{error}");
        }
        let missing = Reading::default().read(Path::new("/no/such.csv"), &VARIABLES).unwrap_err();
        assert_eq!(missing.exit_code(), 7);
    }

    #[test]
    fn empty_cells_are_left_out_on_request_and_counted() {
        let by = Reading { skip_empty: true, ..Reading::default() };
        let runs = read("n_active,tokens,loss\n1e8,1e9,\n1e8,1e9,3\n", &by).unwrap();
        assert_eq!((runs.runs.len(), runs.empty), (1, 1));
    }

    #[test]
    fn rows_of_one_run_share_a_group() {
        let by = Reading { run_column: Some("id".into()), ..Reading::default() };
        let text = "id,n_active,tokens,loss\na,1e8,1e9,3\na,1e8,2e9,2.9\nb,1e8,1e9,3\n";
        let groups: Vec<usize> = read(text, &by).unwrap().runs.iter().map(|r| r.group).collect();
        assert_eq!(groups, [0, 0, 1]);
    }

    #[test]
    fn mappings_and_conditions_without_meaning_are_refused() {
        for bad in ["", "n_active", "size=x", "tokens=", "tokens=step*"] {
            assert!(bad.parse::<Mapping>().is_err(), "{bad}");
        }
        for bad in ["", "step", "step>=x", "=3"] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
    }
}
