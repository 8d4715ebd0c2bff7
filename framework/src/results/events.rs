//! TensorBoard's event files: records with checksums (TFRecord), each a protobuf message `Event`. Only what a
//! run writes is encoded here: scalars, and hyper-parameters as the plugin `hparams` reads them. Which run
//! writes what and when is `run/tracking.rs`'s.
//!
//! The messages are TensorBoard's `event.proto`, `summary.proto` and `plugins/hparams/plugin_data.proto`; the
//! numbers of their fields stand in the code.

/// What happened at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    pub step: u64,
    pub what: What,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The file's version, which is every file's first event.
    Version,
    /// Numbers by their tags.
    Scalars(Vec<(String, f64)>),
    /// The settings of a run by their names.
    HyperParameters(Vec<(String, HyperParameter)>),
    /// The run is finished.
    Finished,
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq)]
pub enum HyperParameter {
    Number(f64),
    Bool(bool),
    Text(String),
}

/// A protobuf message as it grows.
#[derive(Default)]
struct Message(Vec<u8>);

/// The wire types of protobuf that are written here.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.varint(field << 3 | wire_type)
    }

    fn integer(self, field: u64, value: u64) -> Self {
        self.key(field, VARINT).varint(value)
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self = self.key(field, FIXED_64);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self = self.key(field, FIXED_32);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self = self.key(field, BYTES).varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn message(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// Where the step stands in an event's bytes: behind the wall time, a key and 8 bytes.
const STEP: usize = 9;

impl Event {
    /// Returns the message `Event`: wall_time = 1, step = 2, file_version = 3, summary = 5.
    fn message(&self) -> Vec<u8> {
        let event = Message::default().double(1, self.wall_time).integer(2, self.step);
        let event = match &self.what {
            What::Version => event.bytes(3, b"brain.Event:2"),
            What::Scalars(scalars) => event.message(5, &scalars_summary(scalars)),
            What::HyperParameters(settings) => {
                event.message(5, &hparams("session_start_info", 3, &session_start(settings)))
            }
            // SessionEndInfo: status = 1, of which 1 is success.
            What::Finished => {
                event.message(5, &hparams("session_end_info", 4, &Message::default().integer(1, 1)))
            }
        };
        event.0
    }

    /// Returns the event as a record of a file: its length, the length's checksum, the message, the message's
    /// checksum.
    pub fn record(&self) -> Vec<u8> {
        let message = self.message();
        let length = (message.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked_crc(&length), &message[..], &masked_crc(&message)];
        parts.concat()
    }
}

/// Returns a `Summary`, whose value = 1 has tag = 1 and simple_value = 2.
fn scalars_summary(scalars: &[(String, f64)]) -> Message {
    scalars.iter().fold(Message::default(), |summary, (tag, value)| {
        let value = Message::default().bytes(1, tag.as_bytes()).float(2, *value as f32);
        summary.message(1, &value)
    })
}

/// Returns a `Summary` for the plugin `hparams`: a value of tag = 1 and metadata = 9, whose plugin_data = 1 has
/// plugin_name = 1 and content = 2. The content is an `HParamsPluginData` of version 0 with one field.
fn hparams(name: &str, field: u64, content: &Message) -> Message {
    let content = Message::default().message(field, content);
    let plugin = Message::default().bytes(1, b"hparams").message(2, &content);
    let metadata = Message::default().message(1, &plugin);
    let tag = format!("_hparams_/{name}");
    let value = Message::default().bytes(1, tag.as_bytes()).message(9, &metadata);
    Message::default().message(1, &value)
}

/// Returns a `SessionStartInfo`: hparams = 1 maps a name, key = 1, to a `google.protobuf.Value`, value = 2, which is
/// a number_value = 2, string_value = 3 or bool_value = 4.
fn session_start(settings: &[(String, HyperParameter)]) -> Message {
    settings.iter().fold(Message::default(), |info, (name, value)| {
        let value = match value {
            HyperParameter::Number(number) => Message::default().double(2, *number),
            HyperParameter::Text(text) => Message::default().bytes(3, text.as_bytes()),
            HyperParameter::Bool(is_on) => Message::default().integer(4, u64::from(*is_on)),
        };
        let entry = Message::default().bytes(1, name.as_bytes()).message(2, &value);
        info.message(1, &entry)
    })
}

/// A whole record of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// All its bytes.
    pub bytes: &'a [u8],
    pub step: u64,
    /// All that its event says but the wall time.
    pub said: &'a [u8],
}

/// Returns the records of a file that this program wrote, up to the first that isn't whole.
pub fn records(file: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    let mut rest = file;
    while let Some(record) = first_record(rest) {
        rest = &rest[record.bytes.len()..];
        records.push(record);
    }
    records
}

fn first_record(file: &[u8]) -> Option<Record<'_>> {
    let length = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(12)?;
    let message = file.get(12..end)?;
    if file.get(end..end.checked_add(4)?)? != masked_crc(message) {
        return None;
    }
    let said = message.get(STEP..)?;
    let mut step = 0;
    for (index, byte) in said.get(1..)?.iter().enumerate() {
        step |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(Record { bytes: &file[..end + 4], step, said })
}

/// Returns the checksum of a record's part: CRC-32C, rotated and shifted so that a checksum of bytes that hold one
/// is no trivial number.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc_32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Returns the CRC with Castagnoli's polynomial, bit by bit: an event has some hundred bytes.
fn crc_32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn checksums_of_the_standard() {
        assert_eq!(crc_32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc_32c(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc_32c(&rising), 0x46dd_794e);
    }

    /// By hand: key 0x09 and a double, key 0x10 and 300 as a varint, key 0x2a and the summary.
    #[test]
    fn a_scalar_by_hand() {
        let what = What::Scalars(vec![("a".to_owned(), 1.0)]);
        let message = Event { wall_time: 0.0, step: 300, what }.message();
        let mut expected = vec![0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0xac, 0x02, 0x2a, 10];
        expected.extend([0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x3f]);
        assert_eq!(message, expected);
    }

    proptest! {
        /// A file that is cut anywhere has its whole records and no other.
        #[test]
        fn records_are_read_back(
            steps in prop::collection::vec(any::<u32>(), 1..6), cut in any::<prop::sample::Index>()
        ) {
            let events = steps.iter().map(|&step| {
                let what = What::Scalars(vec![("loss".to_owned(), f64::from(step))]);
                Event { wall_time: 1.5, step: step.into(), what }
            });
            let written: Vec<Vec<u8>> = events.map(|event| event.record()).collect();
            let file = written.concat();
            let cut = cut.index(file.len() + 1);
            let mut left = cut;
            let whole = written.iter().take_while(|record| {
                let fits = record.len() <= left;
                left = left.saturating_sub(record.len());
                fits
            }).count();
            let found = records(&file[..cut]);
            prop_assert_eq!(found.len(), whole);
            for (record, step) in found.iter().zip(&steps) {
                prop_assert_eq!(record.step, u64::from(*step));
            }
        }
    }
}
