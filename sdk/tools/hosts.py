"""The stand-in for the hosts that sandboxes call, with those of the documents' samples."""

from lib import standin


class Hosts(standin.StandIn):
    hosts = (*standin.HOSTS, "api.anthropic.com", "github.com")
