"""Contacts as real servers send them: every contact has fields of every kind that have no column."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count

from etl.sandbox.contacts import Contact

_ATTRIBUTE, _NOTE = re.compile(rb'\{(?="key":)'), re.compile(rb'\{(?="title":)')
_PLANS, _SOURCES = ("free", "team", "enterprise"), ("import", "widget", "api", "form")


def with_unknown_fields(contact: Contact) -> Contact:
    """`contact` with scalars, an object of ten fields, lists, and a further field in every attribute and note."""
    serial, ids = contact.serial, count()
    head = _ATTRIBUTE.sub(lambda _: b'{"_id":"65ab%010x%010x",' % (serial, next(ids)), contact.head)
    head = _NOTE.sub(rb'{"createdAt":"2026-01-15T10:30:00.000Z",', head)
    members = (
        f'"externalId":"crm-{serial:08d}","score":{serial % 997 / 10},"attempts":{serial % 7},"isVip":false,'
        f'"meta":{{"plan":"{_PLANS[serial % 3]}","source":"{_SOURCES[serial % 4]}","visits":{serial % 90},'
        f'"firstUrl":"https://shop.example.com/p/{serial % 500}","locale":"en-GB","browser":"Firefox 140",'
        f'"screen":{{"width":1920,"height":1080}},"consent":true,"ratio":{serial % 100 / 100},"ref":null}},'
        f'"labels":["vip","region-{serial % 12}"],"devices":[{{"os":"Android","seen":{serial % 30}}}],'
    )
    return replace(contact, head=head + members.encode())
