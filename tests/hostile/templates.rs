//! Chat templates and tokenizers: programs out of a file.

use std::path::Path;
use std::time::{Duration, Instant};

use circuit_framework::Error;
use circuit_framework::data::chat::Message;
use circuit_framework::data::tokenizer::Tokenizer;
use serde_json::json;

use crate::support::{at, load, repository};

fn with_template(template: &str) -> Tokenizer {
    let tokenizer = load(at(Path::new("embedded"))).tokenizer.unwrap();
    Tokenizer { chat_template: Some(template.to_owned()), ..tokenizer }
}

fn render(template: &str, content: &str) -> Result<String, Error> {
    with_template(template).render(&[Message { role: "user", content }], true)
}

#[test]
fn a_template_that_would_never_end_or_fill_memory_ends_in_one_line() {
    let doubled = |how: &str| format!("{{% set x = 'aaaaaaaa' %}}{}{{{{ x }}}}", how.repeat(80));
    let nested =
        |open: &str, close: &str| format!("{}{}", open.repeat(20_000), close.repeat(20_000));
    for template in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}".to_owned(),
        doubled("{% set x = x ~ x %}"),
        doubled("{% set x = x + x %}"),
        doubled("{% set x %}{{ x }}{{ x }}{% endset %}"),
        doubled("{% set x = x.replace('a', 'aa') %}"),
        doubled("{% set x = x|replace('a', 'aa') %}"),
        doubled("{% set x = [x, x]|join %}"),
        doubled("{% set x = x.join([x, x]) %}"),
        "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
            .to_owned(),
        "{{ 'a' * 1000000000 }}".to_owned(),
        "{{ 'a' * 50000000 }}".to_owned(),
        "{{ ([1] * 1000000000)|length }}".to_owned(),
        "{{ range(1000000000)|list }}".to_owned(),
        "{{ [1]|batch(1000000000, 0) }}".to_owned(),
        "{{ [1]|slice(1000000000, 0) }}".to_owned(),
        "{{ '%1000000000d'|format(1) }}".to_owned(),
        "{{ '{:1000000000}'.format(1) }}".to_owned(),
        "{{ 'a\na'|indent(1000000000) }}".to_owned(),
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        nested("{% if true %}", "{% endif %}"),
        nested("{{ (", ") }}"),
        format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(50_000), "]".repeat(50_000)),
    ] {
        let shown: String = template.chars().take(60).collect();
        let start = Instant::now();
        let error = render(&template, "a question").err().unwrap_or_else(|| panic!("{shown}"));
        assert!(matches!(error, Error::Template(_)), "{shown}: {error}");
        assert_eq!(error.to_string().lines().count(), 1, "{shown}: {error}");
        assert!(start.elapsed() < Duration::from_secs(10), "{shown}: {:?}", start.elapsed());
    }
}

/// Operators of which each is read in a call of its own, as many as there may be, and one more than there may be.
#[test]
fn long_runs_of_operators_never_overflow_the_stack() {
    for operator in ["-", "not ", "1+", "1 if ", "x|", "x."] {
        for length in [60_000, 70_000] {
            let template = format!("{{{{ {}1 }}}}", operator.repeat(length / operator.len()));
            let rendered = render(&template, "a question");
            assert!(length < 65_536 || rendered.is_err(), "{operator}");
            if let Err(error) = rendered {
                assert!(matches!(error, Error::Template(_)), "{operator}: {error}");
            }
        }
    }
}

/// What a template costs grows with the messages, and so does what it may.
#[test]
fn a_long_message_is_rendered() {
    let template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content|trim }}\n{% endfor %}";
    let content = "word ".repeat(1_000_000);
    let rendered = render(template, &content).unwrap();
    assert_eq!(rendered.len(), "user: ".len() + content.len());
}

/// A post-processor that puts a token before texts which it doesn't have: the tokenizers crate reads it, and
/// panics when it is used.
#[test]
fn a_tokenizer_that_panics_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = repository("models/embedded");
    std::fs::copy(embedded.join("config.json"), folder.path().join("config.json")).unwrap();
    let text = std::fs::read_to_string(embedded.join("tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [
            { "SpecialToken": { "id": "[absent]", "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
        ],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }],
        "special_tokens": {},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let line = "discover --model . --random-init 1";
    super::refuses_within(folder.path(), 4_000_000, line, &[".: the tokenizer panicked at "]);
}
