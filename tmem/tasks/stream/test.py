"""The language of the test split."""

from tmem.tasks.stream.language import Chat, Language, Topic, lines, words

NAMES = words("""
Abigail, Bruno, Chloe, Darius, Esther, Frank, Greta, Hugo, Imani, Jakob, Keiko, Liam, Miriam, Nikhil, Odette, Peter,
Rania, Sergio, Tara, Uma, Victor, Willa, Ximena, Yara, Zane, Alison, Boris, Celeste, Declan, Eva, Finn, Gloria, Harvey,
Irene, Julian, Katya, Lorenzo, Mona, Neil, Oona, Pavel, Renata
""")

CHAT = Chat(
    open=lines("""
        Great, we are complete at last.
        Good to hear your voices again.
        Hi, I hope I am not interrupting.
        Look who is here, it is all of us.
        Hello, dear friends, how time passes.
        Sorry, I got held up at the door.
        Hey, can everybody hear me?
    """),
    lead=lines("""
        {name}, how has the week treated you?
        What do you say, {name}?
        And what about you, {name}?
        {name}, please, your turn to talk.
        Let us hear what {name} has to say.
        {name}, you must have something to tell.
        Is there something new, {name}?
        Come on, {name}, tell us more about yourself.
    """),
    react=lines("""
        Honestly, that surprises me.
        I will try not to forget it.
        Is that right?
        I am glad you mention it.
        Somehow that suits the picture I had.
        How come nobody ever told me?
        Oh, so that is the way things are.
        I had been wondering about that.
        Thanks, that is useful to know.
        You are full of surprises.
        Mm, I can imagine.
    """),
    confirm=lines("""
        That is right, yes.
        True, every word of it.
        I see my reputation goes before me.
        Yes, you may tell the others.
        You know me well.
    """),
    small=lines("""
        It was so hot today that the asphalt got soft.
        The bakery had nothing left but crumbs.
        My bicycle has a flat tyre again.
        I spilled ink all over my sleeve.
        The clocks go back this weekend, I think.
        The whole house lost power last night.
        I waited for the bus for an eternity.
        My back hurts from carrying boxes.
        There is a strange smell in the corridor.
        The fireworks kept me awake until two.
        I cannot get this melody out of my head.
        The new curtains are far too short.
        My glasses fog up whenever I come in.
        The roof is leaking, so there are buckets everywhere.
        Half of my calendar is full already.
        I dropped my phone, but it still works.
        The escalator stopped while I was on it.
        Autumn is in the air, the leaves are falling.
        I found a coin on the pavement this morning.
        The meeting today could have been a letter.
        Snow in this month, can you believe it?
        My shoelace snapped as I was running for the bus.
        The tap in the kitchen drips all night.
        I got a parking ticket, of all things.
        Three people called me by mistake today.
        The sunset on the way here was beautiful.
        My inbox is overflowing.
        I could not find a free seat on the train.
        The carpet has a stain that will not come out.
        It is too early to be this tired.
        I need a new mattress, my neck is stiff.
        The elevator music drives me up the wall.
        I overslept and skipped breakfast.
        They closed the library for repairs.
        My hands are freezing.
        The traffic lights were all out of order.
        I had to go back home because I forgot my wallet.
        There was a power saw running since seven.
        I bumped my head on the shelf.
        The calendar on my wall still shows last month.
        I have never seen so many clouds.
        The film last night was so dull that I left.
    """),
    close=lines("""
        I am tired, let us call it a day.
        Well then, I must be going.
        It was good to see every one of you.
        Bye for now, and get home safely.
        Someone is at my door, talk to you later.
        Have a good week, all.
    """),
)

TOPICS = {
    "dog": Topic(
        "attribute",
        words("""Buddy, Captain, Toffee, Rosco, Jellybean, Bolt, Sparky, Pixel, Rusty, Coco, Tinker, Waldo, Zeus,
              Nugget, Otto, Rascal, Snickers, Moose, Pogo, Fidget"""),
        said=lines("""
            I am walking more than ever since I got my dog {v}.
            My dog hid under the sofa during the storm, poor {v}.
            I taught my dog a trick: {v} can now open doors.
        """),
        told=lines("""
            {name}'s dog {v} stole a sausage from the grill.
            A big dog by the name of {v} pulled {name}, its owner, through the mud.
            I may look after {v} next month, that is {name}'s dog.
        """),
        pair=lines("""
            What is the dog of {name} called?
            Which name does {name}'s dog go by?
            What is the name of the dog {name} has?
        """),
        ask=lines("""
            How does {name} address the dog at home?
            Which four-legged friend lives at {name}'s place?
            The vet calls in {name}'s dog; by what name?
        """),
        plain=lines("""
            What name did {name} give the dog?
            What name does the dog of {name} have?
            {name} has a dog; what is it called?
        """),
    ),
    "job": Topic(
        "attribute",
        words("""lawyer, gardener, dentist, pilot, barber, statistician, interpreter, bricklayer, physiotherapist,
              watchmaker, curator, butcher, astronomer, glazier, bookbinder, customs officer, museum guide,
              web developer, ski instructor, insurance broker"""),
        said=lines("""
            I trained as {av}, and that is still what I do every day.
            As {av} I meet all kinds of people at work.
            I earn my bread as {av}, like my mother did.
        """),
        told=lines("""
            {name} makes a living as {av}.
            My cousin needs {av}, so I passed on {name}'s work number.
            They could not do without {name}, such {av} is hard to replace.
        """),
        changed=lines("""
            I resigned in spring, my new job is that of {av}.
            What I did before is over, I now earn my living as {av}.
            I have a new contract, they hired me as {av}.
        """),
        pair=lines("""
            What is {name} by profession?
            Which job does {name} do?
            What kind of work does {name} do?
        """),
        ask=lines("""
            What would {name} write under occupation on a form?
            What does {name} spend the working day as?
            Which trade feeds {name}?
        """),
        plain=lines("""
            What does {name} do as a job?
            What is the occupation of {name}?
            What sort of job does {name} have?
        """),
    ),
    "city": Topic(
        "attribute",
        words("""Madrid, Stockholm, Vancouver, Budapest, Santiago, Kampala, Chicago, Nagoya, Cork, Cairo, Wroclaw,
              Adelaide, Montevideo, Antwerp, Aarhus, Boston, Naples, Jakarta, Glasgow, Zagreb"""),
        said=lines("""
            I have lived in {v} for years and know every corner.
            It is noisy where I live, but {v} is a fine city.
            You are welcome to stay with me at my place in {v}.
        """),
        told=lines("""
            {name} has a house in {v} with a tiny garden.
            Since {name} lives in {v}, we only meet online.
            {name} came all the way from home, from {v}.
        """),
        changed=lines("""
            I live somewhere else now, namely in {v}.
            The move is done, you will find me in {v} from now on.
            I gave up my old flat and went to live in {v}.
        """),
        pair=lines("""
            What is the city where {name} lives?
            Where does {name} have a home?
            Which city does {name} live in?
        """),
        ask=lines("""
            To which city would you travel to ring {name}'s doorbell?
            Where is {name} a resident?
            In what place does {name} sleep on ordinary nights?
        """),
        plain=lines("""
            In which city is {name}'s home?
            In what city is {name} living?
            What is the city that {name} lives in?
        """),
    ),
    "instrument": Topic(
        "attribute",
        words("""guitar, contrabass, oboe, recorder, French horn, harpsichord, vibraphone, theremin, ocarina,
              concertina, tabla, koto, timpani, castanets, cor anglais, melodica, bugle, djembe, charango,
              lap steel"""),
        said=lines("""
            I play the {v} in a small ensemble.
            My grandfather taught me to play the {v}.
            I carried my {v} up four floors to play it for friends.
        """),
        told=lines("""
            {name} is the one who plays the {v} in our street.
            I asked {name} for a lesson on the {v}, such good playing.
            {name} performed on the {v} at the school party.
        """),
        changed=lines("""
            I no longer play what I used to, it is the {v} for me now.
            I moved on to another instrument, and I now play the {v}.
            I left my first instrument behind and learned to play the {v}.
        """),
        pair=lines("""
            What is the instrument that {name} plays?
            Which instrument can {name} play?
            On which instrument does {name} play?
        """),
        ask=lines("""
            What do the neighbours hear when {name} makes music?
            For which instrument does {name} need sheet music?
            What would {name} play on a stage?
        """),
        plain=lines("""
            What musical instrument does {name} play?
            What sort of instrument can {name} play?
            On what instrument does {name} play music?
        """),
    ),
    "car": Topic(
        "attribute",
        words("""green, grey, yellow, purple, pink, brown, scarlet, cyan, magenta, charcoal, champagne, aqua, fuchsia,
              ochre, sapphire, apricot, mauve, crimson, sand, cobalt"""),
        said=lines("""
            Mine is the {v} car across the road.
            I chose {v} for my car, because nobody else has it.
            My car is old and dented, but its {v} paint still shines.
        """),
        told=lines("""
            {name} bought a {v} car and waved at us from it.
            There goes {name}'s car, the {v} one.
            {name}'s car was towed away, it is the {v} one.
        """),
        changed=lines("""
            My old car is gone, I now own a {v} one.
            I could not stand the old paint, so my car is {v} now.
            Since last week my car has been {v}, the old colour is history.
        """),
        pair=lines("""
            What colour is the car of {name}?
            What colour was chosen for {name}'s car?
            Which colour is the car that {name} has?
        """),
        ask=lines("""
            How would a witness describe the paint of {name}'s car?
            Which colour would stand in the papers of {name}'s car?
            {name} drives past; in what colour of car?
        """),
        plain=lines("""
            {name} has a car; what colour is it?
            {name} drives a car of what colour?
            What is the colour that {name}'s car has?
        """),
    ),
    "allergy": Topic(
        "attribute",
        words("""hazelnuts, crab, birch, milk, mushrooms, ibuprofen, horses, cinnamon, chickpeas, mangoes, pistachios,
              ant bites, onions, avocado, sawdust, formaldehyde, rye, paprika, sulphites, oysters"""),
        said=lines("""
            Being allergic to {v}, I have to ask what is in everything.
            My face swelled up, I have an allergy to {v}.
            The test showed it clearly: I am allergic to {v}.
        """),
        told=lines("""
            Please mind that {name} cannot be near {v}, it is an allergy.
            {name} had to call an ambulance, being allergic to {v}.
            The allergy to {v} is hard on {name}.
        """),
        pair=lines("""
            What does {name} have an allergy to?
            What causes {name}'s allergy?
            Which thing is {name} allergic to?
        """),
        ask=lines("""
            What would make {name} swell up or itch?
            Which substance is dangerous for {name}?
            {name} wears an allergy bracelet; what does it warn of?
        """),
        plain=lines("""
            What kind of allergy does {name} have?
            What is the thing {name} is allergic to?
            Which allergy does {name} suffer from?
        """),
    ),
    "hobby": Topic(
        "attribute",
        words("""cycling, basket weaving, karate, sudoku, paragliding, filmmaking, tap dancing, volleyball,
              metal detecting, coin collecting, crochet, snowboarding, bowling, oil painting, pilates, snooker, poetry,
              orienteering, soap making, canoeing"""),
        said=lines("""
            I have to tell you about my hobby, which is {v}.
            My Saturdays are for {v}, a hobby I would not miss.
            I am hooked on {v}, my evenings are full of it.
        """),
        told=lines("""
            {name} talks of nothing but {v}, the hobby of a lifetime.
            If {name} is not at home, then it is because of {v}, that old hobby.
            I have never met anybody as keen on {v} as {name}.
        """),
        changed=lines("""
            You know my old hobby, well, I swapped it for {v}.
            I have a different hobby now, it is {v}.
            I put away the things of my old pastime and now do {v}.
        """),
        pair=lines("""
            What is the hobby of {name}?
            What hobby does {name} pursue?
            Which activity is {name}'s hobby?
        """),
        ask=lines("""
            What is {name} busy with on a day off?
            Which leisure activity does {name} love?
            For what would {name} gladly give up an evening?
        """),
        plain=lines("""
            What is {name}'s favourite free-time activity?
            Which hobby does {name} like to do?
            What is the hobby that {name} enjoys?
        """),
    ),
    "language": Topic(
        "attribute",
        words("""Italian, German, Portuguese, Russian, Swedish, Danish, Cantonese, Ukrainian, Bulgarian, Slovak,
              Slovenian, Lithuanian, Albanian, Punjabi, Telugu, Yoruba, Mongolian, Nepali, Indonesian, Breton"""),
        said=lines("""
            I am trying to learn {v}, though my memory is poor.
            My teacher says I have talent, I am learning {v} with her.
            I can already count to ten, as I study {v} in the evenings.
        """),
        told=lines("""
            {name} wants to speak {v} one day and takes lessons.
            {name} pays a private teacher to learn {v}.
            I tested {name}'s vocabulary, learning {v} is going well.
        """),
        changed=lines("""
            I had enough of the first language and picked {v} to learn.
            New year, new language: I am learning {v} now.
            My old course was cancelled, I am in the one for {v} now.
        """),
        pair=lines("""
            What language does {name} learn?
            Which language does {name} study?
            What is the language {name} is learning?
        """),
        ask=lines("""
            In which language will {name} take an exam?
            What language is {name}'s textbook about?
            Which language is {name} not yet fluent in, but working on?
        """),
        plain=lines("""
            Which foreign language is {name} learning?
            What language does {name} take lessons in?
            Which language is {name} busy learning?
        """),
    ),
    "dish": Topic(
        "preference",
        words("""carbonara, udon, empanadas, hummus, souvlaki, laksa, fried chicken, beef stew, enchiladas, stroganoff,
              japchae, raclette, spring rolls, coq au vin, tagine, currywurst, pizza, mac and cheese, okonomiyaki,
              nasi goreng"""),
        said=lines("""
            I dreamt of {v} last night, the food I love above all.
            Wherever I travel, I look for {v}, my favourite food.
            The way to my heart is food, and {v} in particular.
        """),
        told=lines("""
            {name} never says no to {v} and calls it the best food there is.
            {name} ate three plates of {v}, a favourite food for sure.
            When it comes to food, {name} likes {v} most.
        """),
        changed=lines("""
            I like {v} more than the food I used to praise.
            There is a new number one among foods for me, and it is {v}.
            My taste has changed, {v} is my favourite food now.
        """),
        pair=lines("""
            Which food is {name}'s favourite?
            What is the favourite food of {name}?
            What food does {name} like most?
        """),
        ask=lines("""
            What should be on the table when {name} comes to dinner?
            What would {name} ask for as a last meal?
            Which recipe would {name} want to have?
        """),
        plain=lines("""
            What does {name} like eating best?
            Which dish does {name} like best?
            What is the food that {name} likes best?
        """),
    ),
    "drink": Topic(
        "preference",
        words("""macchiato, peppermint tea, orange juice, prosecco, flat white, blackcurrant cordial, club soda, lager,
              milkshake, mezcal, rum punch, bitter lemon, carrot smoothie, vermouth, cortado, sarsaparilla, daiquiri,
              coconut water, barley wine, ouzo"""),
        said=lines("""
            I would love a sip of {v} now, it is my favourite drink.
            After a long day I treat myself to {v}, the drink I like most.
            I cannot imagine a better drink than {v}.
        """),
        told=lines("""
            {name} asked for {v} again, the usual favourite.
            You can win {name} over with {v}, no drink is loved more.
            {name} praises {v} as the best drink of all.
        """),
        changed=lines("""
            I used to drink something else, but {v} is my favourite now.
            My favourite drink is a new one, I mean {v}.
            Since the summer I like {v} better than my former drink.
        """),
        pair=lines("""
            What is the favourite drink of {name}?
            Which drink does {name} prefer?
            What drink does {name} love most?
        """),
        ask=lines("""
            What would you serve {name} first at a party?
            With which drink would {name} raise a toast?
            What does {name} like to sip in the evening?
        """),
        plain=lines("""
            What does {name} like to drink best?
            Which drink does {name} like more than any other?
            What is the drink {name} loves most?
        """),
    ),
    "flower": Topic(
        "preference",
        words("""chrysanthemums, snowdrops, honeysuckle, hibiscus, nasturtiums, amaryllis, delphiniums, gerberas,
              hollyhocks, edelweiss, sweet peas, hellebores, oleander, verbena, clematis, ranunculus, phlox, plumeria,
              jasmine, mimosa"""),
        said=lines("""
            I stopped at the flower stall for {v}, the flowers I like best.
            I would fill my whole balcony with {v}, no flowers are finer.
            I paint flowers, mostly {v}, because I love those most.
        """),
        told=lines("""
            {name} talks about {v} as others talk about love, no flowers are dearer.
            We gave {name} {v}, because {name} loves no other flowers as much.
            Among all flowers {name} likes {v} most.
        """),
        changed=lines("""
            Other flowers were my favourites once, today I like {v} best.
            I fell for new flowers, my favourites are called {v} now.
            From now on {v} are the flowers I like most.
        """),
        pair=lines("""
            What are the favourite flowers of {name}?
            Which flowers does {name} love most?
            Which flowers does {name} prefer?
        """),
        ask=lines("""
            What should stand in a vase to please {name}?
            With which flowers could you say sorry to {name}?
            What petals does {name} find prettiest?
        """),
        plain=lines("""
            Which flowers does {name} like most?
            What is the favourite flower of {name}?
            Which kind of flower does {name} love best?
        """),
    ),
    "sister": Topic(
        "relation",
        words("""Alma, Blanche, Constance, Daphne, Elspeth, Felicity, Georgina, Henrietta, Isolde, Judith, Karin,
              Leonora, Matilda, Noelle, Orla, Penelope, Rowena, Stella, Tamsin, Verity"""),
        said=lines("""
            My sister is visiting, {v} takes up the whole sofa.
            I bought a present for {v}, my sister.
            When I was small, my sister {v} cut off my hair.
        """),
        told=lines("""
            That voice on the radio is {v}, {name}'s very own sister.
            I once worked with {name}'s sister {v}.
            {name}'s sister, I think she is called {v}, has a new baby.
        """),
        pair=lines("""
            Who is the sister of {name}?
            What is the sister of {name} called?
            What is the name of the sister {name} has?
        """),
        ask=lines("""
            Which female relative shared a childhood with {name}?
            For whom would {name} buy a card that says dear sister?
            {name} says my sister is on the phone; who is calling?
        """),
        plain=lines("""
            {name} has a sister; what is her name?
            What name does the sister of {name} have?
            Which name does {name}'s sister go by?
        """),
    ),
    "flatmate": Topic(
        "relation",
        words("""Ambrose, Byron, Conrad, Duncan, Ezra, Franklin, Gideon, Horace, Ignatius, Jasper, Kenneth, Lloyd,
              Marvin, Ned, Olaf, Phineas, Rupert, Sidney, Tobias, Warren"""),
        said=lines("""
            My flatmate, a man by the name of {v}, works nights.
            I made a cleaning plan with my flatmate {v}.
            The flat is too small for me and my flatmate {v}.
        """),
        told=lines("""
            {name} has a flatmate called {v}, who cooks for two.
            I mistook {v} for {name}'s brother, but he is the flatmate.
            The noise you hear is {v}, {name}'s flatmate.
        """),
        changed=lines("""
            My flatmate is a different one now, he is called {v}.
            {v} has taken over the second room, so he is my flatmate now.
            I live with someone else these days, my flatmate is {v}.
        """),
        pair=lines("""
            Which person is {name}'s flatmate?
            Who lives with {name}?
            What is the name of the flatmate of {name}?
        """),
        ask=lines("""
            Who uses the same bathroom as {name}?
            With whom does {name} argue about the dishes at home?
            Who would notice first if {name} did not come home?
        """),
        plain=lines("""
            Who lives in the same flat as {name}?
            {name} has a flatmate; what is his name?
            Who is the person {name} shares a flat with?
        """),
    ),
    "trip": Topic(
        "event",
        words("""Snowdonia, Corfu, Delphi, Lake Garda, Carcassonne, Ronda, Madeira, Lapland, Gibraltar, Marrakesh,
              Uluru, Hiroshima, Mykonos, Heidelberg, Cinque Terre, Sardinia, Phuket, Transylvania, Lofoten,
              Kilimanjaro"""),
        said=lines("""
            I set off for {v} on {date}, it was my first trip in years.
            On {date} I saw {v} at last, a trip I had saved for.
            I still think of {date}, when my trip took me to {v}.
        """),
        told=lines("""
            {name} set off on a trip to {v} on {date}.
            On {date} I took {name} to the station for a trip to {v}.
            {name} will never forget the trip to {v} on {date}.
        """),
        pair=lines("""
            What was the goal of {name}'s trip?
            Where did {name} travel on a trip?
            To what place did {name} go on a trip?
        """),
        ask=lines("""
            Which place did {name} pack a suitcase for?
            About which destination can {name} tell stories?
            On a map, where would {name} point to show the journey?
        """),
        plain=lines("""
            Where did {name} take a trip to?
            What was the place {name} visited on a trip?
            What destination did {name}'s trip have?
        """),
        pair_date=lines("""
            What date was {name}'s trip on?
            On which date did {name} go on a trip?
            When did {name} set off on a trip?
        """),
        ask_date=lines("""
            On what day would you not have met {name} at home, because of a journey?
            Which date does {name} remember as the day of the journey?
            What day did {name} leave with a suitcase?
        """),
        plain_date=lines("""
            When did {name} take a trip?
            What was the date on which {name} took a trip?
            What was the day of {name}'s trip?
        """),
    ),
    "concert": Topic(
        "event",
        words("""Gentle Tigers, Rainy Casino, Wild Umbrellas, Concrete Meadow, Savage Librarians, Floating Pianos,
              Solar Knights, Empty Carousel, Dancing Anchors, Emerald Tunnel, Phantom Trams, Sugar Machines,
              Ancient Batteries, Spiral Garden, Bold Penguins, Whispering Dragons, Burning Atlas, Crystal Monkeys,
              Humble Thieves, Vanishing Kings"""),
        said=lines("""
            I won a ticket and heard {v} at a concert on {date}.
            On {date} I danced all night at the concert of {v}.
            I was in the front row for the concert of {v} on {date}.
        """),
        told=lines("""
            {name} dragged me along to a concert of {v} on {date}, and I do not even like music.
            {name} got an autograph at the concert of {v} on {date}.
            On {date} {name} stood for hours at a concert of {v}.
        """),
        pair=lines("""
            What band gave the concert {name} attended?
            Which band did {name} hear at a concert?
            To which band's concert did {name} go?
        """),
        ask=lines("""
            Whose show did {name} get to watch?
            Which act would {name} have clapped for?
            Of which band could {name} own a used ticket?
        """),
        plain=lines("""
            Whose concert did {name} see?
            Which band was it that {name} heard in concert?
            What was the band at the concert {name} went to?
        """),
        pair_date=lines("""
            On what date did {name} go to a concert?
            When did {name} attend a concert?
            On which date was the concert {name} attended?
        """),
        ask_date=lines("""
            On which evening would you have seen {name} in the crowd of a show?
            What date stands on the used ticket of {name}?
            Which day did {name} come home with ringing ears?
        """),
        plain_date=lines("""
            When did {name} see a concert?
            What was the date when {name} attended a concert?
            On which date was {name} at a concert?
        """),
    ),
}

LANGUAGE = Language(NAMES, CHAT, TOPICS)
