module duet.local/conformance/harness

go 1.26
