//! `proto/` and the error table against what etcd's own generated Go code says (`etcd-facts.txt`, written by
//! `tests/tools/etcd-facts`), gRPC's health service with it: every message, field, number, type, enum value, RPC and error, in both directions.

use std::collections::BTreeSet;

use duet::etcdserver::error::Error;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto};

const FACTS: &str = include_str!("etcd-facts.txt");

fn etcds(of_errors: bool) -> BTreeSet<String> {
    FACTS.lines().filter(|line| line.starts_with("error ") == of_errors).map(str::to_owned).collect()
}

#[track_caller]
fn assert_same(etcds: &BTreeSet<String>, ours: &BTreeSet<String>) {
    let missing: Vec<_> = etcds.difference(ours).collect();
    let added: Vec<_> = ours.difference(etcds).collect();
    assert!(missing.is_empty() && added.is_empty(), "only etcd has {missing:#?}\nonly Duet has {added:#?}");
}

#[test]
fn our_definitions_are_wire_equal_to_etcds() {
    let set = FileDescriptorSet::decode(duet::proto::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let mut ours = BTreeSet::new();
    for file in &set.file {
        let package = file.package();
        file.message_type.iter().for_each(|message| message_facts(&mut ours, package, message));
        file.enum_type.iter().for_each(|values| enum_facts(&mut ours, package, values));
        file.service.iter().for_each(|service| service_facts(&mut ours, package, service));
    }
    let etcds = etcds(false);
    assert!(etcds.len() > 400, "the list of facts is whole");
    assert_same(&etcds, &ours);
}

fn message_facts(facts: &mut BTreeSet<String>, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    facts.insert(format!("message {name}"));
    for field in &message.field {
        let oneof = field.oneof_index.map(|index| format!(" oneof {}", message.oneof_decl[index as usize].name()));
        facts.insert(format!("field {name} {}{}", field_facts(field), oneof.unwrap_or_default()));
    }
    message.nested_type.iter().for_each(|nested| message_facts(facts, &name, nested));
    message.enum_type.iter().for_each(|values| enum_facts(facts, &name, values));
}

fn field_facts(field: &FieldDescriptorProto) -> String {
    let kind = field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
    let cardinality = field.label().as_str_name().trim_start_matches("LABEL_").to_lowercase();
    assert!(field.label() == Label::Optional || field.label() == Label::Repeated);
    let refers = matches!(field.r#type(), Type::Message | Type::Enum);
    let target = if refers { format!(" {}", field.type_name().trim_start_matches('.')) } else { String::new() };
    format!("{} {} {kind} {cardinality}{target}", field.number(), field.name())
}

fn enum_facts(facts: &mut BTreeSet<String>, scope: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        facts.insert(format!("enum {scope}.{} {} {}", values.name(), value.number(), value.name()));
    }
}

fn service_facts(facts: &mut BTreeSet<String>, package: &str, service: &ServiceDescriptorProto) {
    for method in &service.method {
        let kind = match (method.client_streaming(), method.server_streaming()) {
            (false, false) => "unary",
            (true, false) => "client",
            (false, true) => "server",
            (true, true) => "bidi",
        };
        let (input, output) = (method.input_type().trim_start_matches('.'), method.output_type().trim_start_matches('.'));
        facts.insert(format!("rpc {package}.{} {} {input} {output} {kind}", service.name(), method.name()));
    }
}

#[test]
fn our_errors_are_etcds_to_the_letter() {
    let ours = Error::ALL.iter().map(|error| {
        let code = match error.code() {
            tonic::Code::Cancelled => "Canceled".to_owned(), // Go's spelling
            code => format!("{code:?}"),
        };
        format!("error {} {code} {}", error.name(), error.text())
    });
    assert_same(&etcds(true), &ours.collect());
}
