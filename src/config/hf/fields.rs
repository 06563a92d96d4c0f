//! Looking quantities up under all the names that families give them.

use super::json::Json;

/// Largest layer count or list that is read.
const MOST_LAYERS: usize = 4096;

/// The scopes of a file: the language model's own block first, then the whole file.
pub(super) struct Fields<'a> {
    scopes: Vec<&'a Json>,
}

impl<'a> Fields<'a> {
    /// Blocks that hold the language model of a model with more parts.
    const NESTED: [&'static str; 6] = [
        "text_config",
        "llm_config",
        "language_config",
        "language_model_config",
        "thinker_config.text_config",
        "text_model_config",
    ];

    pub(super) fn of(file: &'a Json) -> Self {
        let inner = Self::NESTED.iter().find_map(|path| file.at(path));
        let inner = inner.filter(|v| v.object().is_some());
        Self { scopes: inner.into_iter().chain([file]).collect() }
    }

    /// The first of the names that is present and not null, with its value.
    pub(super) fn find<'n>(&self, names: &[&'n str]) -> Option<(&'n str, &'a Json)> {
        self.scopes.iter().find_map(|scope| {
            names.iter().find_map(|&name| {
                scope.at(name).filter(|v| **v != Json::Null).map(|value| (name, value))
            })
        })
    }

    pub(super) fn get(&self, names: &[&str]) -> Option<&'a Json> {
        self.find(names).map(|(_, value)| value)
    }

    /// A whole number; the first item of a list, when it holds one number throughout or a pair for
    /// text and vision.
    pub(super) fn size(&self, names: &[&str]) -> Result<Option<usize>, String> {
        match self.find(names) {
            None => Ok(None),
            Some((name, Json::List(items))) => match items.first() {
                None => Ok(None),
                Some(first) => whole(name, first).map(Some),
            },
            Some((name, value)) => whole(name, value).map(Some),
        }
    }

    /// The same above zero; zero is absent.
    pub(super) fn positive(&self, names: &[&str]) -> Result<Option<usize>, String> {
        Ok(self.size(names)?.filter(|&v| v > 0))
    }

    /// The same, which must be there.
    pub(super) fn need(&self, names: &[&str]) -> Result<usize, String> {
        self.positive(names)?.ok_or_else(|| lacks(names))
    }

    /// A value for each layer: one for all, a list with one each, or a pair for text and vision.
    pub(super) fn layered(
        &self,
        names: &[&str],
        layers: usize,
    ) -> Result<Option<Vec<usize>>, String> {
        let Some((name, value)) = self.find(names) else { return Ok(None) };
        let Json::List(items) = value else {
            return Ok(Some(vec![whole(name, value)?; layers]));
        };
        match items.as_slice() {
            [] => Ok(None),
            items if items.len() >= layers => {
                items[..layers].iter().map(|v| whole(name, v)).collect::<Result<_, _>>().map(Some)
            }
            [text] | [text, _] => Ok(Some(vec![whole(name, text)?; layers])),
            items => Err(format!("`{name}` has {} values for {layers} layers", items.len())),
        }
    }

    pub(super) fn number(&self, names: &[&str]) -> Result<Option<f64>, String> {
        match self.find(names) {
            None => Ok(None),
            Some((_, Json::Number(value))) => Ok(Some(*value)),
            Some((name, value)) => Err(format!("`{name}` is {value}, not a number")),
        }
    }

    /// A flag; 0 and 1 are accepted, and a list says what its first item says.
    pub(super) fn flag(&self, names: &[&str]) -> Option<bool> {
        let value = self.get(names)?;
        let value = value.list().and_then(<[Json]>::first).unwrap_or(value);
        value.bool().or_else(|| value.number().map(|v| v > 0.0))
    }

    pub(super) fn text(&self, names: &[&str]) -> Option<&'a str> {
        self.get(names)?.text()
    }

    /// A list of whole numbers; absent is empty. Text with commas is a list as well.
    pub(super) fn indices(&self, names: &[&str]) -> Result<Vec<usize>, String> {
        match self.find(names) {
            None => Ok(Vec::new()),
            Some((name, Json::List(items))) => items.iter().map(|v| whole(name, v)).collect(),
            Some((name, Json::Text(text))) => text
                .split(',')
                .map(|t| t.trim().parse().map_err(|_| format!("`{name}` holds `{t}`")))
                .collect(),
            Some((name, value)) => Err(format!("`{name}` is {value}, not a list")),
        }
    }

    /// A list of words, one for each of the layers; more are cut, for layers that predict ahead.
    pub(super) fn words(
        &self,
        names: &[&str],
        layers: Option<usize>,
    ) -> Result<Option<Vec<&'a str>>, String> {
        let Some((name, value)) = self.find(names) else { return Ok(None) };
        let not_words = || format!("`{name}` is {value}, not a list of words");
        let items = value.list().ok_or_else(not_words)?;
        let words: Vec<&str> =
            items.iter().map(Json::text).collect::<Option<_>>().ok_or_else(not_words)?;
        let layers = layers.unwrap_or(words.len());
        if words.len() < layers {
            return Err(format!("`{name}` has {} entries for {layers} layers", words.len()));
        }
        Ok(Some(words[..layers].to_vec()))
    }
}

/// What to say of a quantity that is missing under all its names.
pub(super) fn lacks(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 1 { format!("lacks one of {shown}") } else { format!("lacks {shown}") }
}

/// A whole number of a field.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be whole and in range"
)]
pub(super) fn whole(name: &str, value: &Json) -> Result<usize, String> {
    const MOST: f64 = 4_503_599_627_370_496.0;
    match value {
        Json::Number(v) if v.fract() == 0.0 && (0.0..=MOST).contains(v) => Ok(*v as usize),
        _ => Err(format!("invalid value in `{name}`: {value} is not a whole number")),
    }
}

/// Refuses layer counts that no model has, before lists of that length are made.
pub(super) fn checked_layers(layers: usize) -> Result<usize, String> {
    if (1..=MOST_LAYERS).contains(&layers) {
        Ok(layers)
    } else {
        Err(format!("num_layers: {layers} does not lie between 1 and {MOST_LAYERS}"))
    }
}
