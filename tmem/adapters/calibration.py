"""Texts on which the inputs of layers are looked at when the bank's init is `activation`: a conversation, questions about it
with their answers, a notice, a log, a table. Invented; no task's text is among them."""

TEXTS = (
    "Sunday, 3 March. Odile: I finally moved into the flat above the bakery. The stairs are steep but the light is lovely. "
    "Teodor: Congratulations! Did the piano fit? Odile: Only without its legs. My brother Anselm carried it with me. He "
    "works at the harbour now, as a crane driver, and starts at five every morning. Teodor: I could not do that. I have "
    "switched to evening shifts at the clinic since January. Odile: And the allergy? Teodor: Still no walnuts for me.",
    "Where does Odile live now? Above the bakery.",
    "Who helped Odile to carry the piano? Her brother Anselm.",
    "What does Anselm do for a living? He is a crane driver at the harbour.",
    "When does Teodor work at the clinic? In the evening, since January.",
    "What can Teodor not eat? Walnuts.",
    "What is the name of Odile's sister? unknown",
    "The library on Quay Street will be closed from 12 to 19 August while the heating is replaced. Books that fall due in "
    "these days may be returned until the 26th. The reading group meets in the town hall instead, on Thursday at half past "
    "six; this month it reads a short novel about a lighthouse keeper and his two daughters.",
    "08:14 user asks for a train to Brno before noon. 08:15 search trains(from=Vienna, to=Brno, before=12:00): 3 results. "
    "08:15 offered 09:10, 10:10, 11:10. 08:17 user takes 10:10, window seat, no discount card. 08:18 booking failed: card "
    "expired. 08:21 user gives another card. 08:22 booked, reference KX48QP, 21.60 euro.",
    "| plant | water | light |\n|---|---|---|\n| fern | every second day | shade |\n| cactus | once a month | full sun |\n"
    "| basil | daily | window |\nThe fern belongs to Mirela, the other two to her neighbour.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "In the spring of her second year at the observatory, Ines changed her mind about the survey. She had believed that the "
    "faint signal was noise from the old receiver; now, after eleven clear nights, it had come back at the same place.",
)
