"""Invented people for every channel: the tables that contacts are drawn from.

Phones are well formed for their country, from a block reserved for fiction if the country has one; mail addresses
are at example.com only. All text is valid between JSON quotes without escaping.
"""

from typing import NamedTuple


class Country(NamedTuple):
    """A country, and the format of its phone numbers."""

    name: str
    city: str
    prefix: str
    """Country code as the API holds it: both `"91"` and `"+44"` occur."""
    stem: str
    """First digits of the national number; some keep the leading 0."""
    free: int
    """The number of digits after the stem."""


COUNTRIES = (
    Country("United States", "New York", "1", "21255501", 2),
    Country("United States", "San Francisco", "+1", "41555501", 2),
    Country("Australia", "Sydney", "61", "0491570", 3),
    Country("Sweden", "Göteborg", "+46", "07017406", 2),
    Country("United Kingdom", "London", "+44", "020794601", 2),
    Country("United Kingdom", "Manchester", "44", "01614960", 3),
    Country("India", "Pune", "91", "98765", 5),
    Country("Brazil", "São Paulo", "55", "119612", 5),
    Country("Germany", "Köln", "+49", "0152288173", 2),
    Country("Spain", "Málaga", "34", "61234", 4),
    Country("United Arab Emirates", "Dubai", "971", "50123", 4),
)

FIRST_NAMES = (
    *("Ada", "Grace", "Émile", "Zoë", "José", "Søren", "Aiko", "Priya", "Omar", "Léa", "Björn", "Chidi", "Inês"),
    *("Mai", "Ravi", "Sana", "Noor", "Iván", "Øystein", "Thuy", "李雷", "Анна", "محمد", "Dvořák", "Ana María"),
)
LAST_NAMES = (
    *("Example", "Sample", "Testova", "Musterfrau", "Dupont", "García", "O'Neill", "Nguyễn", "Kowalski", "Hansen"),
    *("Rossi", "Silva", "Haddad", "Okafor", "Sharma", "Tanaka", "Müller", "Žižka", "de la Cruz", "van Dijk"),
)
TAGS = ("vip", "newsletter", "lead", "trial", "returning", "wholesale", "Événement", "b2b", "priority", "black friday")
SEGMENTS = tuple(f"65aa00000000000000005e{n:02x}" for n in range(6))
AGENTS = tuple(f"65aa0000000000000000a9{n:02x}" for n in range(8))
AGENCY = "65aa0000000000000000b001"
CUSTOMER = "65aa0000000000000000c001"
STATUSES = ("OPEN", "OPEN", "OPEN", "INPROGRESS", "REVIEW", "ONHOLD", "DEPENDANCY", "CLOSED", "Waiting for parts")
GENDERS = ("", "male", "female", "other")
SPEAKERS = ("user", "bot", "user", "agent")
MESSAGES = (
    "Hello, is the blue one still available?",
    "Thanks! 🙏",
    "Your order is on its way to the address you gave us.",
    "¿Tienen envío a Málaga?",
    "Please send me the price list for ten or more.",
    "Ok",
    "मुझे वापस कॉल करें",
    "We will answer within one working day. \\u2014 The team",
    "",
)

ATTRIBUTES = (
    ("utm_source", "google"),
    ("utm_medium", "cpc"),
    ("utm_campaign", "spring-sale-2025"),
    ("city", "Lyon"),
    ("plan", "premium yearly"),
    ("language", "pt-BR"),
    ("consent", "true"),
    ("company", "Example & Sons Ltd"),
    ("lead_score", "73"),
    ("preferred_time", "weekday mornings"),
    ("last_product", "Linen shirt, navy, size L"),
    ("referrer", "https://shop.example.com/blog/how-to-care-for-linen"),
    ("budget", "500-1000"),
    ("newsletter", "weekly"),
    ("crm_owner", "team-south"),
    ("birthday_month", "October"),
)
PAGES = (
    "https://shop.example.com/",
    "https://shop.example.com/collections/linen?sort=price-ascending",
    "https://shop.example.com/pricing",
    "https://shop.example.com/contact#form",
    "https://shop.example.com/blog/how-to-care-for-linen",
    "https://shop.example.com/cart",
)
CHANNELS = ("WHATSAPP", "WHATSAPP", "WHATSAPP", "WEBSITE", "WEBSITE", "TELEGRAM", "FACEBOOK", "INSTAGRAM")
"""Repeated by how common they are."""
BOTS = {channel: tuple(f"65aa0000000000{n:02x}0000b0{k:02x}" for k in range(3)) for n, channel in enumerate(CHANNELS)}
AUTOMATION = "65aa0000000000ff0000b0ff"
