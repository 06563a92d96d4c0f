//! Columns that are computed from others: `C/(6*N)`.
//!
//! Sums, differences, products, quotients and powers of columns and numbers, with parentheses. Nothing
//! else is understood, and nothing is executed.

/// Deepest nesting that is read.
const DEEPEST: usize = 64;

/// A formula over columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Formula {
    /// A number.
    Number(f64),
    /// A column by name.
    Column(String),
    /// Two formulas and what is done with them.
    Binary(Operator, Box<Self>, Box<Self>),
}

/// What is done with two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Sum.
    Add,
    /// Difference.
    Subtract,
    /// Product.
    Multiply,
    /// Quotient.
    Divide,
    /// Power.
    Power,
}

impl Formula {
    /// Parses text; `None` when it is no formula.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text.trim() };
        let formula = reader.sum(0)?;
        reader.rest.is_empty().then_some(formula)
    }

    /// Names of the columns that it uses.
    pub(super) fn columns(&self) -> Vec<&str> {
        match self {
            Self::Number(_) => Vec::new(),
            Self::Column(name) => vec![name],
            Self::Binary(_, left, right) => [left.columns(), right.columns()].concat(),
        }
    }

    /// Its value for the values of columns.
    pub(super) fn value<E>(&self, column: &impl Fn(&str) -> Result<f64, E>) -> Result<f64, E> {
        Ok(match self {
            Self::Number(value) => *value,
            Self::Column(name) => column(name)?,
            Self::Binary(operator, left, right) => {
                let (left, right) = (left.value(column)?, right.value(column)?);
                match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                    Operator::Power => left.powf(right),
                }
            }
        })
    }
}

/// What is left of the text.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn take(&mut self, symbols: &[(char, Operator)]) -> Option<Operator> {
        let first = self.rest.chars().next()?;
        let (_, operator) = symbols.iter().find(|(symbol, _)| *symbol == first)?;
        self.rest = self.rest[first.len_utf8()..].trim_start();
        Some(*operator)
    }

    fn sum(&mut self, depth: usize) -> Option<Formula> {
        let mut left = self.product(depth)?;
        while let Some(operator) = self.take(&[('+', Operator::Add), ('-', Operator::Subtract)]) {
            left = Formula::Binary(operator, Box::new(left), Box::new(self.product(depth)?));
        }
        Some(left)
    }

    fn product(&mut self, depth: usize) -> Option<Formula> {
        let mut left = self.power(depth)?;
        while let Some(operator) = self.take(&[('*', Operator::Multiply), ('/', Operator::Divide)])
        {
            left = Formula::Binary(operator, Box::new(left), Box::new(self.power(depth)?));
        }
        Some(left)
    }

    fn power(&mut self, depth: usize) -> Option<Formula> {
        let base = self.atom(depth)?;
        match self.take(&[('^', Operator::Power)]) {
            Some(operator) => {
                Some(Formula::Binary(operator, Box::new(base), Box::new(self.atom(depth)?)))
            }
            None => Some(base),
        }
    }

    fn atom(&mut self, depth: usize) -> Option<Formula> {
        if depth > DEEPEST {
            return None;
        }
        if let Some(inner) = self.rest.strip_prefix('(') {
            self.rest = inner.trim_start();
            let formula = self.sum(depth + 1)?;
            self.rest = self.rest.strip_prefix(')')?.trim_start();
            return Some(formula);
        }
        if self.rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return self.number();
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        (!name.is_empty()).then(|| Formula::Column(name.to_owned()))
    }

    /// The longest number at the start, with its exponent.
    fn number(&mut self) -> Option<Formula> {
        let plain = self.rest.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        let mut end = plain.unwrap_or(self.rest.len());
        if let Some(exponent) = self.rest[end..].strip_prefix(['e', 'E']) {
            let digits = exponent.trim_start_matches(['+', '-']);
            let count = digits.bytes().take_while(u8::is_ascii_digit).count();
            if count > 0 {
                end += 1 + exponent.len() - digits.len() + count;
            }
        }
        let value = self.rest[..end].parse().ok()?;
        self.rest = self.rest[end..].trim_start();
        Some(Formula::Number(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> f64 {
        let column = |name: &str| match name {
            "C" => Ok(1.2e21),
            "N" => Ok(1e9),
            other => Err(other.to_owned()),
        };
        Formula::parse(text).unwrap().value(&column).unwrap()
    }

    #[test]
    fn formulas_follow_the_usual_order() {
        assert!((value("C/(6*N)") / 2e11 - 1.0).abs() < 1e-12);
        assert!((value("2 + 3*4 - 2^3") - 6.0).abs() < 1e-12);
        assert!((value("8/2/2") - 2.0).abs() < 1e-12);
        assert!((value("1.5e-3*2E3") - 3.0).abs() < 1e-12);
        assert_eq!(Formula::parse("C/(6*N)").unwrap().columns(), ["C", "N"]);
    }

    #[test]
    fn what_is_no_formula_is_refused() {
        for text in ["", "C/", "(C", "C)", "6*", "a b", "C//N", "--N"] {
            assert!(Formula::parse(text).is_none(), "{text}");
        }
        assert!(Formula::parse(&"(".repeat(100_000)).is_none());
    }
}
