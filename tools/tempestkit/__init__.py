"""OpenStack's own API tests against a lab: what tools/tempest consists of."""
