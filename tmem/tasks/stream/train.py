"""The language of the train split."""

from tmem.tasks.stream.language import Chat, Language, Topic, lines, words

NAMES = words("""
Priya, Omar, Nina, Lucas, Amara, Felix, Ingrid, Mateo, Yuki, Dennis, Clara, Hassan, Bridget, Tomas, Leila, Gavin, Sonja,
Rafael, Mei, Arthur, Fatima, Kevin, Elena, Jamal, Astrid, Pablo, Ruth, Stefan, Noor, Colin, Vera, Diego, Hannah, Kofi,
Simone, Martin, Anjali, Lars, Paula, Xavier, Gwen, Dmitri
""")

CHAT = Chat(
    open=lines("""
        Hi all, good to see your faces again.
        Hello everyone, sorry I am a little late.
        There you are, I saved you a seat.
        Good evening, friends, it has been a while.
        Hey, is everybody here now?
        Morning, everyone, what a week it has been.
        Hello hello, finally a quiet hour together.
        Come in, come in, we were just about to start.
    """),
    lead=lines("""
        What is new with you, {name}?
        And you, {name}, how is life?
        {name}, you have been very quiet so far.
        Any news from your side, {name}?
        Your turn, {name}.
        Tell us something, {name}.
        How have you been, {name}?
        {name}, you look like you want to say something.
        Go on, {name}, we are all ears.
    """),
    react=lines("""
        I had no idea.
        Good to know, I will remember that.
        Really? You never told me.
        Thanks for sharing that.
        That is news to me.
        Well, well, that explains a few things.
        Interesting, I would not have guessed.
        Oh, I wish I had heard that sooner.
        I see, that makes sense.
        Huh, one learns something every day.
        Right, I think somebody mentioned that once.
        Okay, I will keep that in mind.
    """),
    confirm=lines("""
        Yes, that is true.
        Guilty as charged.
        Correct, no secrets in this group.
        Ha, word travels fast.
        It is true, I admit it.
        Yes, you remembered it well.
    """),
    small=lines("""
        The rain has not stopped since Sunday.
        My phone is almost out of battery again.
        I slept terribly, the wind was so loud.
        The lift in my building is broken once more.
        I cannot find my keys anywhere.
        Traffic was awful on the way here.
        It gets dark so early now.
        The heating in this room is far too high.
        Somebody left the window open all night.
        I stood in a queue for forty minutes today.
        The internet was down for half the day.
        I still have so many messages to answer.
        This chair is not very comfortable.
        I have been sneezing all day, it is only a cold.
        The shop on the corner has closed for good.
        My umbrella broke on the first gust of wind.
        Time flies, it feels like yesterday that we met.
        I finally cleaned out the cellar.
        The neighbours were drilling holes all morning.
        I have read the same page five times today.
        The parcel I ordered is still not here.
        I forgot my gloves on the tram.
        My washing machine makes a strange noise.
        They are digging up the whole street again.
        The clock on this wall has stopped.
        I must have left my scarf at the cinema.
        The ceiling lamp keeps flickering.
        I walked here, it took longer than I thought.
        Nobody told me that the museum closes at four.
        My watch is ten minutes slow.
        I ran out of stamps again.
        The radio said that it will snow tomorrow.
        I wanted to be early for once.
        My shoes are soaked through.
        There was a rainbow over the roofs before.
        I deleted a thousand old photos last night.
        Every pen in this house is empty.
        I met nobody on the way, the streets were deserted.
        The door squeaks so badly, it needs oil.
        I have not read a newspaper in days.
        My suitcase lost a wheel on the cobbles.
        The moon was huge last night.
        I lost count of the emails I got today.
        We should sit outside once it gets warmer.
    """),
    close=lines("""
        I have to run, see you next time.
        All right, same time next week?
        This was nice, let us do it again soon.
        I should go before the last bus leaves.
        Take care, everyone.
        Good night, all of you.
        Let us stop here, it is late.
    """),
)

TOPICS = {
    "dog": Topic(
        "attribute",
        words("""Biscuit, Rocket, Pepper, Noodle, Bandit, Maple, Ziggy, Pickle, Domino, Shadow, Teddy, Comet, Patch,
              Truffle, Bingo, Nacho, Sprout, Widget, Button, Rufus"""),
        said=lines("""
            My dog {v} woke me up at five this morning.
            I took the dog to the groomer, and now my {v} smells of shampoo.
            I have a dog at home, a clumsy thing by the name of {v}.
        """),
        told=lines("""
            {name}'s dog {v} chewed one of my shoes last time.
            I walked {name}'s dog yesterday, and little {v} would not stop barking.
            Did you know that {name} named the dog {v}?
        """),
        pair=lines("""
            What is the name of {name}'s dog?
            What is {name}'s dog called?
            Which name did {name} give the dog?
        """),
        ask=lines("""
            {name} owns a dog; what name does it answer to?
            If you shouted for {name}'s dog, what would you shout?
            What do people call the dog that lives with {name}?
        """),
        plain=lines("""
            Which name does {name}'s dog have?
            What does {name} call the dog?
            What is the dog that {name} owns called?
        """),
    ),
    "job": Topic(
        "attribute",
        words("""nurse, plumber, librarian, electrician, baker, translator, pharmacist, florist, carpenter, geologist,
              tailor, paramedic, surveyor, journalist, locksmith, optician, park ranger, tax adviser, bus driver,
              zookeeper"""),
        said=lines("""
            I work as {av}, so my shifts are long.
            Being {av} pays my bills, and most days I enjoy it.
            At the office party somebody asked what I do, and I said I am {av}.
        """),
        told=lines("""
            {name} works as {av}, in case you need one.
            It must be tiring for {name} to be {av}.
            I always forget that {name} is {av} by trade.
        """),
        changed=lines("""
            I quit my old job, and from now on I work as {av}.
            Big change for me: I am {av} now.
            I switched careers since we last spoke and became {av}.
        """),
        pair=lines("""
            What is {name}'s job?
            What does {name} do for a living?
            What does {name} work as?
        """),
        ask=lines("""
            How does {name} earn money?
            What profession does {name} have?
            In which line of work is {name} employed?
        """),
        plain=lines("""
            Which job does {name} have?
            What is the job of {name}?
            What work does {name} do?
        """),
    ),
    "city": Topic(
        "attribute",
        words("""Lisbon, Oslo, Toronto, Prague, Lima, Nairobi, Seattle, Osaka, Dublin, Tunis, Krakow, Brisbane, Bogota,
              Ghent, Helsinki, Denver, Turin, Hanoi, Leeds, Valencia"""),
        said=lines("""
            I live in {v}, right behind the old station.
            My flat in {v} is small, but the view is lovely.
            For me home is {v}, I would not swap it for anything.
        """),
        told=lines("""
            {name} lives in {v}, that is quite a way from here.
            Next time we should all visit {name} at home in {v}.
            I posted the card to {name}'s address in {v}.
        """),
        changed=lines("""
            I have moved house, my new home is in {v}.
            The boxes are unpacked at last: I live in {v} now.
            I left my old town for good and settled in {v}.
        """),
        pair=lines("""
            Where does {name} live?
            In which city does {name} live?
            What city is {name}'s home in?
        """),
        ask=lines("""
            To what city would you send a letter for {name}?
            Which place does {name} call home?
            Where would you find {name}'s house?
        """),
        plain=lines("""
            Which city is {name}'s home?
            Which city does {name} have a home in?
            What is the name of the city {name} lives in?
        """),
    ),
    "instrument": Topic(
        "attribute",
        words("""violin, trumpet, ukulele, clarinet, harp, banjo, drums, bassoon, accordion, viola, harmonica,
              xylophone, sitar, piccolo, tuba, lute, didgeridoo, marimba, zither, bouzouki"""),
        said=lines("""
            I play the {v}, much to the sorrow of my neighbours.
            Every evening I practise the {v} for an hour.
            I bought new sheet music, because I play the {v}.
        """),
        told=lines("""
            {name} plays the {v}, and rather well too.
            I heard {name} practise the {v} through the wall.
            We could ask {name} to bring the {v} and play for us.
        """),
        changed=lines("""
            I gave up my old instrument and now play the {v}.
            I sold what I used to play and took up the {v} instead.
            From now on the {v} is my instrument, no longer the other one.
        """),
        pair=lines("""
            Which instrument does {name} play?
            What instrument does {name} play?
            What musical instrument is {name} able to play?
        """),
        ask=lines("""
            On what does {name} make music?
            If {name} joined a band, what would {name} play?
            Which instrument can be heard when {name} practises?
        """),
        plain=lines("""
            What is {name}'s musical instrument?
            Which instrument is {name} able to play?
            {name} plays an instrument; which one is it?
        """),
    ),
    "car": Topic(
        "attribute",
        words("""red, navy, silver, beige, orange, turquoise, maroon, olive, white, lilac, bronze, cream, coral,
              emerald, mint, khaki, plum, amber, graphite, peach"""),
        said=lines("""
            My car is {v}, so you will spot it right away.
            I parked outside, mine is the {v} car.
            I drive a car that is {v} from bumper to bumper.
        """),
        told=lines("""
            {name} drives a {v} car, look, it is just outside.
            If you see a {v} car in the street, that is {name}'s.
            The {v} car blocking the gate belongs to {name}.
        """),
        changed=lines("""
            I had my car repainted, it is {v} now.
            I traded in the old car, and my new one is {v}.
            Do not look for my old car, I drive a {v} one these days.
        """),
        pair=lines("""
            What colour is {name}'s car?
            Which colour does {name}'s car have?
            What is the colour of {name}'s car?
        """),
        ask=lines("""
            How is the car that {name} drives painted?
            You look for {name}'s car; what colour should you look for?
            Which colour is {name}'s vehicle?
        """),
        plain=lines("""
            What colour is the car that {name} drives?
            What colour of car does {name} drive?
            In which colour is {name}'s car painted?
        """),
    ),
    "allergy": Topic(
        "attribute",
        words("""peanuts, shellfish, pollen, wheat, sesame, penicillin, cat hair, latex, soy, strawberries, walnuts,
              wasp stings, dust, celery, kiwi, mould, nickel, buckwheat, tomatoes, sunscreen"""),
        said=lines("""
            I am allergic to {v}, so please be careful.
            The doctor says that I have an allergy to {v}.
            I had to leave early because I react badly to {v}, it is an allergy.
        """),
        told=lines("""
            Remember that {name} is allergic to {v}.
            We have to watch out, {name} has an allergy to {v}.
            {name} spent a night in hospital because of an allergy to {v}.
        """),
        pair=lines("""
            What is {name} allergic to?
            What allergy does {name} have?
            To what does {name} have an allergy?
        """),
        ask=lines("""
            What should be kept away from {name} for health reasons?
            What makes {name} ill with an allergic reaction?
            Which allergy must a host of {name} think of?
        """),
        plain=lines("""
            What thing is {name} allergic to?
            What is the allergy that {name} has?
            What is it that {name} is allergic to?
        """),
    ),
    "hobby": Topic(
        "attribute",
        words("""birdwatching, pottery, rock climbing, origami, fencing, chess, knitting, kayaking, calligraphy,
              salsa dancing, woodcarving, archery, stargazing, skateboarding, geocaching, juggling, embroidery,
              scuba diving, model building, table tennis"""),
        said=lines("""
            My hobby is {v}, it clears my head.
            I spend nearly every free hour on {v}.
            You will laugh, but {v} is what I do for fun at weekends.
        """),
        told=lines("""
            {name} is mad about {v} and does it every weekend.
            {name}'s hobby is {v}, in case you wondered.
            All of {name}'s free time goes into {v}.
        """),
        changed=lines("""
            I dropped my old hobby, now it is all about {v}.
            I got bored of my pastime and took up {v} instead.
            My free time belongs to {v} now, I stopped the other thing.
        """),
        pair=lines("""
            What is {name}'s hobby?
            What does {name} do in the free time?
            Which hobby does {name} have?
        """),
        ask=lines("""
            How does {name} like to spend a free weekend?
            What does {name} do for fun?
            Which pastime is {name} fond of?
        """),
        plain=lines("""
            What sort of hobby does {name} have?
            What is the name of {name}'s hobby?
            What hobby is {name} keen on?
        """),
    ),
    "language": Topic(
        "attribute",
        words("""Spanish, Japanese, Welsh, Greek, Turkish, Hindi, Polish, Norwegian, Swahili, Korean, Hungarian,
              Catalan, Tamil, Latvian, Hebrew, Croatian, Thai, Icelandic, Georgian, Malay"""),
        said=lines("""
            I am learning {v}, the grammar drives me crazy.
            I signed up for lessons in {v}, every Tuesday.
            I have been studying {v} with an app on the train.
        """),
        told=lines("""
            {name} is learning {v}, the accent is not bad at all.
            I saw {name} with a textbook, taking lessons in {v}.
            {name} is studying {v} in the evenings.
        """),
        changed=lines("""
            I stopped my old language course and am learning {v} instead.
            I swapped languages, it is {v} that I study now.
            The other language was too hard, so I now take lessons in {v}.
        """),
        pair=lines("""
            Which language is {name} learning?
            What language does {name} study?
            What language is {name} taking lessons in?
        """),
        ask=lines("""
            {name} is a language student; of what language?
            Which foreign tongue is {name} trying to master?
            In what language does {name} do homework?
        """),
        plain=lines("""
            Which new language is {name} learning?
            What is the language that {name} studies?
            What language is {name} trying to learn?
        """),
    ),
    "dish": Topic(
        "preference",
        words("""lasagne, ramen, paella, falafel, moussaka, cannelloni, gumbo, tacos, goulash, biryani, fish and chips,
              pierogi, ratatouille, jollof rice, schnitzel, bibimbap, gnocchi, chili con carne, quiche, tempura"""),
        said=lines("""
            My favourite food is {v}, I could eat it daily.
            Nothing makes me happier than a big plate of {v}.
            If I may choose dinner, I always choose {v}.
        """),
        told=lines("""
            {name} loves {v} more than any other food.
            Let us cook {v}, that is {name}'s favourite food.
            Whenever {name} chooses dinner, we end up with {v}.
        """),
        changed=lines("""
            I have a new favourite food: {v}.
            I am over my old favourite, these days I like {v} best of all food.
            Forget what I used to love eating, now it is {v}.
        """),
        pair=lines("""
            What is {name}'s favourite food?
            Which food does {name} like best?
            What food does {name} love most?
        """),
        ask=lines("""
            What would you cook to make {name} happy?
            Which meal would {name} pick above all others?
            What does {name} most like to eat?
        """),
        plain=lines("""
            What is the favourite dish of {name}?
            Which food does {name} prefer to all others?
            What food is {name} most fond of?
        """),
    ),
    "drink": Topic(
        "preference",
        words("""espresso, green tea, lemonade, horchata, cider, hot chocolate, ginger ale, mango lassi, cola,
              sparkling water, chai, kombucha, grapefruit juice, root beer, mojito, rooibos, pear nectar, sangria,
              buttermilk, sherry"""),
        said=lines("""
            My favourite drink is {v}, always has been.
            In every bar I end up asking for {v}, nothing tastes better to me.
            Of all drinks I like {v} best.
        """),
        told=lines("""
            {name} would drink {v} all day long if possible.
            Order {v} for {name}, who likes no drink better.
            No drink pleases {name} as much as {v}.
        """),
        changed=lines("""
            My favourite drink has changed, it is {v} now.
            I went off my usual drink and now prefer {v}.
            Do not pour me the old thing, {v} is what I like to drink best now.
        """),
        pair=lines("""
            What is {name}'s favourite drink?
            Which drink does {name} like best?
            What does {name} prefer to drink?
        """),
        ask=lines("""
            What should you pour into {name}'s glass?
            What would {name} order at a bar?
            Which beverage pleases {name} most?
        """),
        plain=lines("""
            What drink is {name}'s favourite?
            Which drink does {name} love most?
            What drink is {name} most fond of?
        """),
    ),
    "flower": Topic(
        "preference",
        words("""tulips, sunflowers, peonies, orchids, daffodils, marigolds, camellias, irises, poppies, gardenias,
              hyacinths, cornflowers, dahlias, freesias, snapdragons, geraniums, magnolias, bluebells, cyclamen,
              anemones"""),
        said=lines("""
            My favourite flowers are {v}, they cheer me up.
            I put {v} on my table again, no flower is dearer to me.
            Of all flowers I like {v} best.
        """),
        told=lines("""
            {name} adores {v} above all other flowers.
            For the birthday we should get {name} a bunch of {v}, the favourite flowers.
            {name} likes {v} more than any other flower.
        """),
        changed=lines("""
            My taste in flowers has changed, I like {v} best now.
            I have new favourite flowers: {v}.
            No more of my old favourites in the vase, I now love {v} most.
        """),
        pair=lines("""
            What are {name}'s favourite flowers?
            Which flowers does {name} like best?
            What flowers does {name} love most?
        """),
        ask=lines("""
            Which bouquet would delight {name}?
            What blooms would you bring to {name} as a gift?
            What should the flower shop wrap up for {name}?
        """),
        plain=lines("""
            What flowers are {name}'s favourites?
            Which flowers is {name} most fond of?
            Which sort of flowers does {name} like best?
        """),
    ),
    "sister": Topic(
        "relation",
        words("""Agnes, Beatrix, Corinne, Delphine, Edith, Fiona, Harriet, Imelda, Josephine, Kirsten, Lucinda, Mabel,
              Nadia, Ottilie, Philippa, Rosalind, Sylvie, Thea, Ursula, Winifred"""),
        said=lines("""
            My sister {v} called me for two hours yesterday.
            I am picking up my sister from the airport, her name is {v}.
            I grew up with one sister, {v}, and we still quarrel.
        """),
        told=lines("""
            {name}'s sister {v} says hello to all of you.
            I ran into {v}, the sister of {name}, at the market.
            {name} has a sister called {v}, they look alike.
        """),
        pair=lines("""
            What is the name of {name}'s sister?
            What is {name}'s sister called?
            Who is {name}'s sister?
        """),
        ask=lines("""
            Which woman grew up as a sister of {name}?
            {name} has a sister; what do people call her?
            Which name belongs to the sister of {name}?
        """),
        plain=lines("""
            Which name does {name}'s sister have?
            What is the first name of {name}'s sister?
            Which woman is {name}'s sister?
        """),
    ),
    "flatmate": Topic(
        "relation",
        words("""Abel, Barnaby, Caspar, Dexter, Edgar, Fergus, Gareth, Howard, Idris, Jerome, Keith, Lionel, Magnus,
              Norman, Orson, Percy, Ralph, Seamus, Terence, Wilfred"""),
        said=lines("""
            My flatmate {v} never does the dishes.
            I share my flat with a man called {v}.
            I got locked out, but luckily my flatmate {v} was at home.
        """),
        told=lines("""
            {name} shares a flat with {v}, the one who snores.
            {name}'s flatmate {v} opened the door for me.
            I like {v}, the flatmate of {name}.
        """),
        changed=lines("""
            My old flatmate moved out, and now I live with {v}.
            I have a new flatmate, his name is {v}.
            The room at my place is taken again, my flatmate is {v} now.
        """),
        pair=lines("""
            What is the name of {name}'s flatmate?
            Who is {name}'s flatmate?
            With whom does {name} share a flat?
        """),
        ask=lines("""
            Who else lives in {name}'s flat?
            Which person shares a kitchen with {name}?
            Who splits the rent with {name}?
        """),
        plain=lines("""
            What is the flatmate of {name} called?
            Who lives in a flat with {name}?
            Which name does {name}'s flatmate have?
        """),
    ),
    "trip": Topic(
        "event",
        words("""Sintra, Hallstatt, Zermatt, Giverny, Santorini, Machu Picchu, Yosemite, Stonehenge, Pompeii, Dubrovnik,
              Zanzibar, Angkor Wat, Petra, Skye, Bruges, Lake Como, Niagara Falls, Cappadocia, Banff, Tenerife"""),
        said=lines("""
            On {date} I went on a trip to {v}, it was worth every penny.
            My trip to {v} was on {date}, and I still look at the photos.
            I took a day trip to {v} on {date}, all by myself.
        """),
        told=lines("""
            On {date} {name} went on a trip to {v} and sent me a postcard.
            {name} was away on a trip to {v} on {date}.
            The trip to {v} that {name} made on {date} sounds wonderful.
        """),
        pair=lines("""
            Where did {name} go on a trip?
            What place did {name} visit on a trip?
            Which place did {name}'s trip lead to?
        """),
        ask=lines("""
            What was the destination when {name} travelled?
            To which place did {name} travel?
            What sight did {name} set off to see?
        """),
        plain=lines("""
            What place was {name}'s trip to?
            Where did {name}'s trip lead?
            Which place did {name} go to on a trip?
        """),
        pair_date=lines("""
            When did {name} go on a trip?
            What was the date of {name}'s trip?
            On what date was {name}'s trip?
        """),
        ask_date=lines("""
            On which day did {name} travel?
            Which date would you find in {name}'s travel diary?
            What day was it when {name} set off on the journey?
        """),
        plain_date=lines("""
            What date did {name} go on a trip?
            When did {name} make a trip?
            Which date was {name}'s trip on?
        """),
    ),
    "concert": Topic(
        "event",
        words("""Copper Foxes, Velvet Harbour, Midnight Ferry, Paper Lanterns, Electric Orchard, Broken Compass,
              Silent Rivers, Neon Giants, Winter Parade, Golden Static, Lost Telegrams, Hollow Pines, Crimson Kites,
              Glass Pilots, Distant Engines, Marble Owls, Sleepy Wolves, Tin Cathedral, Ocean Radio, Lucky Sparrows"""),
        said=lines("""
            On {date} I went to a concert by {v}, my ears are still ringing.
            I saw {v} in concert on {date}, third row.
            The concert I went to on {date} was by {v}, I sang along all night.
        """),
        told=lines("""
            {name} went to a concert by {v} on {date} without me.
            On {date} {name} saw {v} in concert.
            I am jealous that {name} got to the concert by {v} on {date}.
        """),
        pair=lines("""
            Which band did {name} see in concert?
            Whose concert did {name} go to?
            What band did {name} hear at a concert?
        """),
        ask=lines("""
            Which group was on stage when {name} went out for live music?
            Who played at the gig that {name} attended?
            For which band did {name} buy a ticket?
        """),
        plain=lines("""
            Which band played at the concert {name} went to?
            Which band gave the concert that {name} saw?
            What band's concert did {name} see?
        """),
        pair_date=lines("""
            When did {name} go to a concert?
            What was the date of the concert {name} went to?
            On what date did {name} see a band in concert?
        """),
        ask_date=lines("""
            On which day did {name} hear live music?
            Which date was printed on {name}'s gig ticket?
            What day was the gig that {name} attended?
        """),
        plain_date=lines("""
            What date did {name} go to a concert?
            When was {name} at a concert?
            When did {name} see a band in concert?
        """),
    ),
}

LANGUAGE = Language(NAMES, CHAT, TOPICS)
