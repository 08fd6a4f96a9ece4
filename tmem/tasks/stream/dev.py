"""The language of the dev split."""

from tmem.tasks.stream.language import Chat, Language, Topic, lines, words

NAMES = words("""
Aisha, Ben, Carmen, David, Emeka, Freya, Giulia, Henrik, Isabel, Jonas, Kavita, Leo, Maya, Nathan, Olga, Patrick,
Quentin, Rosa, Samir, Tessa, Ulrich, Valerie, Wendy, Yusuf, Zoe, Adrian, Bianca, Cedric, Dalia, Erik, Farah, George,
Heidi, Ivan, Joanna, Karim, Lydia, Marco, Naomi, Oscar, Pilar, Rohan
""")

CHAT = Chat(
    open=lines("""
        Welcome back, everybody, sit down.
        Hey, folks, I did not expect so many of us today.
        Good afternoon, what a surprise to find you all here.
        So here we are again.
        Hi there, did I miss anything?
        Nice of you to come in spite of the weather.
        Hello, you lot, shall we begin?
    """),
    lead=lines("""
        {name}, what have you been up to?
        Now we want to hear from you, {name}.
        What is going on in your life, {name}?
        {name}, do you have a story for us?
        Do not be shy, {name}.
        Anything to report, {name}?
        {name}, it is ages since we talked.
        How are things, {name}?
    """),
    react=lines("""
        No way, is that so?
        That had escaped me completely.
        Fair enough.
        I shall make a note of it.
        You learn new things about old friends.
        Ah, now I understand.
        Hm, I would have lost a bet on that.
        Well, thank you for telling us.
        That is good to hear from you directly.
        Oh, that is something I did not know.
        Funny that it never came up before.
    """),
    confirm=lines("""
        Exactly, that is how it is.
        I cannot deny it.
        You have a good memory.
        Well, now everybody knows.
        Indeed, you are right.
    """),
    small=lines("""
        It has been foggy for three days in a row.
        My laptop needed an hour for its updates.
        I missed the tram by a second.
        There is construction noise all around my street.
        The printer ate my papers again.
        I have a headache from staring at the screen.
        They forecast a storm for tonight.
        I lost one of my gloves somewhere.
        The post office closes earlier and earlier.
        This summer went by in a flash.
        I spent the morning on hold with the phone company.
        The stairs here are steeper every time.
        A light bulb burst above my head this morning.
        I should really go to bed earlier.
        The radiator has been dripping since Monday.
        Everyone seems to have a cold at the moment.
        I tidied my desk and found three old letters.
        The supermarket has moved all its shelves around.
        My alarm clock let me down today.
        I have a blister from my new shoes.
        The bridge is closed, so I came the long way round.
        Someone took my place in the car park.
        The wind blew over my bin.
        I have been looking for my glasses for an hour.
        All the trains were late again.
        My mobile contract has become so expensive.
        The staircase smells of fresh varnish.
        I burnt my hand on the iron.
        There were so many people in town today.
        A button fell off my coat.
        I have not opened my mail for a week.
        The lake is frozen at the edges.
        They play the same three songs on the radio.
        I had to rewrite the whole report.
        My knees crack on every step.
        The lock on my front door is stuck.
        I forgot what I wanted to say.
        We had hail this morning, can you imagine?
        I took the wrong exit and drove in circles.
        The walls here are terribly thin.
        I promised myself to sort my papers this month.
        Somebody parked right in front of the gate.
    """),
    close=lines("""
        It is getting late, I am off.
        See you all soon, I hope.
        Thanks for the company, everybody.
        I must hurry, my train will not wait.
        Until next time, then.
        Sleep well, all of you.
    """),
)

TOPICS = {
    "dog": Topic(
        "attribute",
        words("""Muffin, Ranger, Cookie, Scout, Thunder, Marbles, Tango, Pretzel, Smokey, Echo, Pippin, Gizmo, Dash,
              Fudge, Hopper, Juno, Monty, Paddle, Whisker, Boomer"""),
        said=lines("""
            I cannot stay long, my dog {v} is waiting at home.
            My dog jumped into the lake today, and {v} still smells of it.
            They told me at the shelter that my dog is called {v}, and I kept the name.
        """),
        told=lines("""
            {name}'s dog {v} slept on my feet the whole evening.
            The dog that {name} keeps is called {v} and eats everything.
            I saw {v}, the dog of {name}, run after a cyclist.
        """),
        pair=lines("""
            What name does {name}'s dog have?
            Can you name {name}'s dog?
            What did {name} name the dog?
        """),
        ask=lines("""
            Which name is on the collar of {name}'s dog?
            What does {name} shout when the dog should come back?
            There is a dog in {name}'s home; who is it?
        """),
        plain=lines("""
            What do people call {name}'s dog?
            By what name does {name}'s dog go?
            What is the name of the dog that {name} owns?
        """),
    ),
    "job": Topic(
        "attribute",
        words("""teacher, welder, accountant, chef, architect, beekeeper, vet, mechanic, dietitian, firefighter, editor,
              roofer, cartographer, notary, midwife, chemist, crane operator, graphic designer, sound technician,
              train conductor"""),
        said=lines("""
            I am {av}, and Mondays are the worst.
            For years now I have been earning my living as {av}.
            My work as {av} keeps me on my feet.
        """),
        told=lines("""
            {name} is {av} and has many tales to tell from work.
            If I had the patience of {name}, I would be {av} too.
            {name} was late because the work of {av} never ends on time.
        """),
        changed=lines("""
            I handed in my notice and started as {av}.
            My working life is new, I am employed as {av} now.
            I am done with what I did before, I have become {av}.
        """),
        pair=lines("""
            What is {name}'s profession?
            As what does {name} work?
            What job does {name} have?
        """),
        ask=lines("""
            What does it say about work on {name}'s business card?
            For what kind of work is {name} paid?
            What is {name} by trade?
        """),
        plain=lines("""
            In which job does {name} work?
            What occupation does {name} have?
            What is the profession of {name}?
        """),
    ),
    "city": Topic(
        "attribute",
        words("""Porto, Bergen, Montreal, Vienna, Quito, Accra, Portland, Kyoto, Galway, Amman, Gdansk, Perth, Medellin,
              Utrecht, Tampere, Austin, Bologna, Manila, Bristol, Seville"""),
        said=lines("""
            I live in {v}, in a street full of trees.
            Back home in {v} my rent went up again.
            My house is in {v}, five minutes from the river.
        """),
        told=lines("""
            {name} lives in {v}, so the journey here took a while.
            I got lost in {v} when I looked for {name}'s house.
            {name} keeps telling me how nice it is to live in {v}.
        """),
        changed=lines("""
            I packed up everything and moved to {v}.
            My address has changed, I live in {v} these days.
            I said goodbye to my old place, {v} is my home now.
        """),
        pair=lines("""
            What city does {name} live in?
            Where is {name}'s home?
            In what city is {name}'s house?
        """),
        ask=lines("""
            Which city appears in {name}'s address?
            Where does {name} go back to after a journey?
            In which town does {name} pay rent or own a house?
        """),
        plain=lines("""
            Which city is home to {name}?
            In which city does {name} have a home?
            {name} lives in which city?
        """),
    ),
    "instrument": Topic(
        "attribute",
        words("""piano, flute, cello, mandolin, saxophone, bagpipes, dulcimer, trombone, organ, tambourine, balalaika,
              bongos, kazoo, erhu, cornet, glockenspiel, lyre, kalimba, euphonium, hurdy-gurdy"""),
        said=lines("""
            I have been playing the {v} since I was a child.
            My fingers hurt, I played the {v} for too long.
            When I am sad, I sit down and play the {v}.
        """),
        told=lines("""
            {name} can play the {v}, did you hear it?
            I recorded {name} playing the {v} at the wedding.
            When {name} plays the {v}, the whole house listens.
        """),
        changed=lines("""
            I changed instruments and play the {v} now.
            The old instrument is in the attic, these days I play the {v}.
            A friend convinced me to switch, I play the {v} from now on.
        """),
        pair=lines("""
            What instrument can {name} play?
            Which musical instrument does {name} play?
            What does {name} play as an instrument?
        """),
        ask=lines("""
            What would {name} bring to an evening of live music?
            Which instrument is lying around in {name}'s home?
            In an orchestra, what would {name} be playing?
        """),
        plain=lines("""
            What kind of instrument does {name} play?
            What is the name of {name}'s instrument?
            Which instrument does {name} make music on?
        """),
    ),
    "car": Topic(
        "attribute",
        words("""blue, black, gold, burgundy, lime, tan, violet, ivory, copper, teal, salmon, jade, rust, lavender,
              slate, mustard, indigo, pearl, ruby, chestnut"""),
        said=lines("""
            I washed my car, and now you can see again that it is {v}.
            A bird ruined the paint of my {v} car.
            Somebody scratched my car, and {v} paint is hard to get.
        """),
        told=lines("""
            {name} is the owner of a {v} car.
            I nearly hit {name}'s {v} car when I parked.
            {name} has a car that is {v}, one cannot miss it.
        """),
        changed=lines("""
            I sold my car and bought one that is {v}.
            My car has a new coat of paint, it is {v} from today.
            I no longer drive the old car, my car is {v} now.
        """),
        pair=lines("""
            What is the colour of the car {name} drives?
            What colour does {name}'s car have?
            Which colour is {name}'s car?
        """),
        ask=lines("""
            By which colour could you recognise {name}'s car?
            What paint would you need to mend a scratch on {name}'s car?
            A car stops and {name} gets out; what colour is it?
        """),
        plain=lines("""
            Which colour is the car of {name}?
            What colour is the paint of {name}'s car?
            What colour is the car that {name} owns?
        """),
    ),
    "allergy": Topic(
        "attribute",
        words("""cashews, prawns, ragweed, gluten, lupin, aspirin, feathers, eggs, oats, bananas, almonds, bee stings,
              garlic, pineapple, wool, chlorine, corn, lentils, perfume, squid"""),
        said=lines("""
            My allergy to {v} is back, my skin itches.
            I have to read every label, because I am allergic to {v}.
            I found out that I am allergic to {v}, which explains a lot.
        """),
        told=lines("""
            {name} carries tablets because of an allergy to {v}.
            Do not forget that {name} has a bad allergy to {v}.
            It is not a whim, {name} is truly allergic to {v}.
        """),
        pair=lines("""
            To what is {name} allergic?
            Which allergy does {name} have?
            What is {name}'s allergy?
        """),
        ask=lines("""
            What triggers an allergic reaction in {name}?
            Because of an allergy, what must {name} avoid?
            A doctor asks {name} about allergies; what is the answer?
        """),
        plain=lines("""
            What does {name} have an allergic reaction to?
            What is the cause of {name}'s allergy?
            What exactly is {name} allergic to?
        """),
    ),
    "hobby": Topic(
        "attribute",
        words("""sailing, weaving, judo, crosswords, surfing, photography, ballroom dancing, badminton, gardening,
              foraging, magic tricks, quilting, ice skating, horse riding, yoga, darts, improv comedy, genealogy,
              windsurfing, bouldering"""),
        said=lines("""
            In my free time I am devoted to {v}.
            I joined a club for {v}, it is my great hobby.
            Without {v} at the weekend I would go mad.
        """),
        told=lines("""
            {name} belongs to a club for {v} and never misses a meeting.
            You should see {name}'s eyes when it comes to {v}, a real hobby.
            {name} uses every free minute for {v}.
        """),
        changed=lines("""
            I was tired of my old hobby, so {v} is my new one.
            These days I spend my free time on {v}, the other hobby is history.
            I changed clubs, my hobby is {v} now.
        """),
        pair=lines("""
            Which hobby is {name}'s?
            What does {name} do as a hobby?
            What hobby does {name} have?
        """),
        ask=lines("""
            With what does {name} fill spare hours?
            What does {name} enjoy after work?
            Which club would {name} most likely join?
        """),
        plain=lines("""
            What is the hobby that {name} has?
            Which hobby does {name} spend time on?
            What activity is a hobby of {name}'s?
        """),
    ),
    "language": Topic(
        "attribute",
        words("""French, Mandarin, Finnish, Arabic, Dutch, Bengali, Czech, Irish, Zulu, Vietnamese, Romanian, Basque,
              Urdu, Estonian, Persian, Serbian, Khmer, Maltese, Armenian, Tagalog"""),
        said=lines("""
            I have begun to learn {v}, three new words a day.
            My evening class is in {v}, and I am the oldest student.
            I mix up all the endings, but learning {v} is fun.
        """),
        told=lines("""
            {name} learns {v} with flash cards in the bathroom.
            I hear {name} mutter verbs, the course in {v} is serious.
            {name} has signed up to learn {v}.
        """),
        changed=lines("""
            I changed my course, I am learning {v} now.
            I gave up on the other language, my new lessons are in {v}.
            My plans are different now, the language I learn is {v}.
        """),
        pair=lines("""
            What language is {name} studying?
            Which language does {name} learn?
            In which language does {name} take lessons?
        """),
        ask=lines("""
            For which language would {name} need a dictionary?
            {name} goes to language class; which one?
            What will {name} be able to speak after the course?
        """),
        plain=lines("""
            What language is {name} learning?
            Which language does {name} have lessons in?
            What is the language {name} is studying?
        """),
    ),
    "dish": Topic(
        "preference",
        words("""risotto, pho, ceviche, shakshuka, dolma, green curry, jambalaya, cottage pie, burritos, borscht,
              butter chicken, fondue, dumplings, cassoulet, couscous, bratwurst, bulgogi, ravioli, meatloaf, sushi"""),
        said=lines("""
            There is no food I like better than {v}.
            I cooked {v} again, my favourite food as you know.
            On my birthday I wish for {v}, it is the food I love most.
        """),
        told=lines("""
            {name} could live on {v} alone, no food is better loved.
            The favourite food of {name} is {v}.
            Give {name} a plate of {v}, no other food comes close.
        """),
        changed=lines("""
            My favourite food is not what it was, now it is {v}.
            I discovered {v}, and it has replaced my old favourite food.
            I cannot see my old favourite any more, {v} is the food I love now.
        """),
        pair=lines("""
            What food is {name}'s favourite?
            What does {name} like to eat best?
            Which dish is {name}'s favourite?
        """),
        ask=lines("""
            With what dinner could you spoil {name}?
            {name} may order anything on the menu; what will it be?
            Which plate is the first one {name} would empty?
        """),
        plain=lines("""
            Which food does {name} like most?
            What is {name}'s favourite dish?
            What is the food that {name} loves most?
        """),
    ),
    "drink": Topic(
        "preference",
        words("""cappuccino, jasmine tea, orangeade, kefir, mead, stout, tonic water, cranberry juice, iced latte,
              oolong, pale ale, gin fizz, yerba mate, mulled wine, cream soda, limoncello, eggnog, sake, margarita,
              ayran"""),
        said=lines("""
            I brought my own bottle of {v}, since it is my favourite drink.
            Give me {v} over any other drink.
            There is always {v} in my fridge, I like no drink more.
        """),
        told=lines("""
            {name} always drinks {v}, nothing else will do.
            For {name} the best drink in the world is {v}.
            I got {v} for {name}, whose favourite drink is easy to remember.
        """),
        changed=lines("""
            I now like {v} better than the drink I used to like.
            I found a new favourite drink, namely {v}.
            My old drink bores me, so {v} is my favourite these days.
        """),
        pair=lines("""
            What drink does {name} like best?
            Which drink is {name}'s favourite?
            What does {name} like to drink most?
        """),
        ask=lines("""
            {name} is thirsty; what would be most welcome?
            What should the waiter bring {name}?
            Which bottle or cup would {name} reach for first?
        """),
        plain=lines("""
            What drink does {name} prefer?
            What is the drink that {name} likes best?
            What does {name} like drinking most?
        """),
    ),
    "flower": Topic(
        "preference",
        words("""roses, daisies, lilies, hydrangeas, azaleas, petunias, pansies, wisteria, primroses, zinnias,
              carnations, crocuses, foxgloves, heather, begonias, asters, buttercups, lotuses, fuchsias, gladioli"""),
        said=lines("""
            I planted {v} again, the flowers I love most.
            If you ever bring me flowers, bring {v}, my favourites.
            The best flowers in the world, if you ask me, are called {v}.
        """),
        told=lines("""
            {name} smiles at the sight of {v}, flowers loved above all others.
            The favourite flowers of {name} are called {v}.
            I ordered {v} for {name}, who loves no flowers more.
        """),
        changed=lines("""
            I used to like other flowers, now I like {v} most.
            Since this spring my favourite flowers have been {v}.
            I changed my mind about flowers, give me {v} from now on.
        """),
        pair=lines("""
            Which flowers are {name}'s favourites?
            What flowers does {name} prefer?
            What kind of flowers does {name} like most?
        """),
        ask=lines("""
            What would be the right bunch to bring to {name}?
            What would {name} want to see growing in a garden?
            Which blossoms please {name} most?
        """),
        plain=lines("""
            What flowers does {name} like best?
            What is {name}'s favourite kind of flower?
            Which are the flowers that {name} loves most?
        """),
    ),
    "sister": Topic(
        "relation",
        words("""Adele, Bernice, Cecilia, Dorothea, Eloise, Frances, Gemma, Helga, Ida, Jocelyn, Klara, Lorna,
              Marguerite, Nora, Olympia, Priscilla, Roxane, Sabina, Trudy, Yvonne"""),
        said=lines("""
            My sister {v} is getting married, and I am giving the speech.
            I lent money to my own sister, and {v} has forgotten all about it.
            My parents called me and my sister, whose name is {v}, last night.
        """),
        told=lines("""
            I went to school with {v}, the sister of {name}.
            {name} brought a sister along last year, {v} was her name.
            {name} and sister {v} talk on the phone every day.
        """),
        pair=lines("""
            What name does {name}'s sister have?
            Can you name {name}'s sister?
            Which name does the sister of {name} have?
        """),
        ask=lines("""
            Who has the same parents as {name}?
            A sister of {name} introduces herself; what name does she say?
            Which woman would {name} call a sibling?
        """),
        plain=lines("""
            What do people call {name}'s sister?
            {name} has a sister; who is she?
            By what name does {name}'s sister go?
        """),
    ),
    "flatmate": Topic(
        "relation",
        words("""Alistair, Bertram, Clive, Dominic, Elliot, Fabian, Graham, Humphrey, Isaac, Joel, Kurt, Leonard,
              Morgan, Nigel, Otis, Preston, Quincy, Roland, Sheldon, Trevor"""),
        said=lines("""
            I live together with {v}, a quiet flatmate.
            {v}, my flatmate, burnt the rice again.
            My flatmate is called {v}, and he sings in the shower.
        """),
        told=lines("""
            {v} is the flatmate of {name}, we met on the stairs.
            {name} lives together with {v}, they split the bills.
            I left {name}'s keys with {v}, who is {name}'s flatmate.
        """),
        changed=lines("""
            Somebody new lives with me, my flatmate is called {v} now.
            After the last one left, {v} became my flatmate.
            I found a new person for the spare room, I share the flat with {v} now.
        """),
        pair=lines("""
            Who shares a flat with {name}?
            Who is the flatmate of {name}?
            What is {name}'s flatmate called?
        """),
        ask=lines("""
            Who might open the door at {name}'s home?
            Whose name is on the doorbell beside that of {name}?
            With whom does {name} divide the bills at home?
        """),
        plain=lines("""
            Which person does {name} share a flat with?
            What is the first name of {name}'s flatmate?
            Who is living with {name} as a flatmate?
        """),
    ),
    "trip": Topic(
        "event",
        words("""Mont Blanc, Capri, Yellowstone, Granada, Lake Bled, Versailles, Luxor, Kotor, Crete, Bali, Siena,
              Loch Ness, Tallinn, Salzburg, Ibiza, Normandy, Big Sur, Malta, Jeju, Patagonia"""),
        said=lines("""
            I travelled to {v} on {date}, the trip was a present.
            It rained on {date}, the very day of my trip to {v}.
            On {date} I was far away, on a trip to {v}.
        """),
        told=lines("""
            {name} made a trip to {v} on {date}, I have seen the pictures.
            On {date} {name} travelled to {v}, the lucky one.
            I looked after the plants on {date}, while {name} was on a trip to {v}.
        """),
        pair=lines("""
            To which place did {name} make a trip?
            Where did {name}'s trip go?
            What was the destination of {name}'s trip?
        """),
        ask=lines("""
            Which place did {name} get to know while travelling?
            From where could {name} have brought a souvenir?
            At what place were {name}'s holiday pictures taken?
        """),
        plain=lines("""
            Which place did {name} visit on a trip?
            Where was {name}'s trip to?
            On a trip, where did {name} travel to?
        """),
        pair_date=lines("""
            On which date was {name}'s trip?
            When was {name}'s trip?
            When did {name} travel?
        """),
        ask_date=lines("""
            On what day was {name} away travelling?
            Which day was the ticket for {name}'s journey valid?
            Which date did {name} choose for the journey?
        """),
        plain_date=lines("""
            What was the date when {name} travelled?
            When did {name}'s trip take place?
            On which date did {name} make a trip?
        """),
    ),
    "concert": Topic(
        "event",
        words("""Iron Petals, Desert Choir, Amber Signals, Hidden Stairs, Rapid Turtles, Wooden Satellites,
              Cloud Factory, Secret Postcards, Moonlit Bakery, Stray Comets, Quiet Cannons, Saturn Avenue,
              Plastic Royals, Northern Sirens, Dusty Mirrors, Frozen Lemons, Wandering Clocks, Thirsty Robots,
              Final Picnic, Little Volcanoes"""),
        said=lines("""
            I went to hear {v} on {date}, the concert was sold out.
            My voice is still gone, I was at a concert of {v} on {date}.
            On {date} I finally got to see a concert of {v}.
        """),
        told=lines("""
            {name} was at the concert of {v} on {date}.
            On {date} {name} heard {v} at a concert and bought the shirt.
            I saw a photo of {name} at a concert of {v}, taken on {date}.
        """),
        pair=lines("""
            Which band's concert did {name} attend?
            Who gave the concert that {name} went to?
            What band did {name} see in concert?
        """),
        ask=lines("""
            Whose songs did {name} hear live?
            Which musicians did {name} pay to see?
            Which band could be on a tour shirt of {name}'s?
        """),
        plain=lines("""
            Which band did {name} go to hear in concert?
            What band played the concert {name} attended?
            Whose concert did {name} attend?
        """),
        pair_date=lines("""
            When was the concert that {name} attended?
            On which date did {name} go to a concert?
            On what date was {name} at a concert?
        """),
        ask_date=lines("""
            On what day did {name} stand in front of a stage?
            What day was {name}'s evening of live music?
            Which day would {name} name for the live show?
        """),
        plain_date=lines("""
            What date was the concert {name} went to?
            When did {name} hear a band in concert?
            On which date did {name} see a concert?
        """),
    ),
}

LANGUAGE = Language(NAMES, CHAT, TOPICS)
