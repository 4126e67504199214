"""The rules as text: golden, so that each change of them is looked at beside ztunnel-facts 10.2 to 10.4."""

from __future__ import annotations

from node.rules import RuleOptions, nft_removal_script, nft_script, table_names

PLAIN = """\
add table inet istio-ambient-mangle
delete table inet istio-ambient-mangle
add table inet istio-ambient-nat
delete table inet istio-ambient-nat
add table inet istio-ambient-raw
delete table inet istio-ambient-raw

table inet istio-ambient-mangle {
  comment "mycelia capture rules, version 1"
  chain prerouting {
    type filter hook prerouting priority -150; policy accept;
    jump istio-prerouting
  }
  chain output {
    type route hook output priority -150; policy accept;
    jump istio-output
  }
  chain istio-prerouting {
    meta mark & 0xfff == 0x539 counter ct mark set ct mark & 0xfffff000 | 0x111
  }
  chain istio-output {
    ct mark & 0xfff == 0x111 counter meta mark set ct mark
  }
}

table inet istio-ambient-nat {
  comment "mycelia capture rules, version 1"
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    jump istio-prerouting
  }
  chain output {
    type nat hook output priority -100; policy accept;
    jump istio-output
  }
  chain istio-prerouting {
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006
    ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 counter redirect to :15006
  }
  chain istio-output {
    meta l4proto tcp meta mark & 0xfff == 0x111 counter accept
    oifname "lo" ip daddr != 127.0.0.1 counter accept
    oifname "lo" ip6 daddr != ::1 counter accept
    meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 counter redirect to :15001
    meta l4proto tcp ip6 daddr != ::1 meta mark & 0xfff != 0x539 counter redirect to :15001
  }
}
"""

PROBES_IN = """\
    meta l4proto tcp ip saddr 169.254.7.127 counter accept
    meta l4proto tcp ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff counter accept
"""
PROBES_OUT = PROBES_IN.replace("saddr", "daddr")
DNS_OUT = """\
    oifname != "lo" udp dport 53 meta mark & 0xfff != 0x539 counter redirect to :15053
    ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0xfff != 0x539 counter redirect to :15053
    ip6 daddr != ::1 tcp dport 53 meta mark & 0xfff != 0x539 counter redirect to :15053
"""


def test_the_rules_of_a_captured_workload() -> None:
    assert nft_script(RuleOptions()) == PLAIN


def test_probes_are_let_through_first_when_asked_for() -> None:
    nat = nft_script(RuleOptions(lets_probes_through=True)).partition("table inet istio-ambient-nat {")[2]
    assert "chain istio-prerouting {\n" + PROBES_IN in nat
    assert "chain istio-output {\n" + PROBES_OUT in nat


def test_dns_is_redirected_before_other_traffic_when_asked_for() -> None:
    script = nft_script(RuleOptions(captures_dns=True))
    assert "chain istio-output {\n" + DNS_OUT in script
    assert "udp dport 53 meta mark & 0xfff == 0x539 counter ct zone set 1" in script
    assert "udp sport 53 meta mark & 0xfff != 0x539 counter ct zone set 1" in script


def test_without_dns_no_rule_names_port_53() -> None:
    assert "53 " not in nft_script(RuleOptions()).replace("0x539 ", "")
    assert table_names(RuleOptions()) == ("istio-ambient-mangle", "istio-ambient-nat")


def test_removal_deletes_each_table_of_any_options() -> None:
    script = nft_removal_script()
    for name in table_names(RuleOptions(captures_dns=True)):
        assert f"add table inet {name}\ndelete table inet {name}\n" in script
